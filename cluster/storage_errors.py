"""What goes wrong with disks and object stores: what is tried again, and how errors read.

botocore tries a request again that a store answered with 500, 503 or "slow down", or whose
connection broke or stayed silent; it waits longer each time. AWS_MAX_ATTEMPTS and AWS_RETRY_MODE
change that. An answer whose body breaks off is read again here.
"""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from cluster.errors import AccessDeniedError, UserError

MAX_ATTEMPTS = 6
"""Attempts of one request to an object store, unless AWS_MAX_ATTEMPTS says otherwise."""

CONNECT_TIMEOUT_S = 10
"""Time to connect to an object store (seconds)."""

READ_TIMEOUT_S = 60
"""Longest silence of an object store that has been asked something (seconds)."""

CUT_READS = 3
"""Attempts to read a file whose content broke off."""

CUT_READ_PAUSE_S = 0.5
"""Pause before a file is read again (seconds)."""

T = TypeVar("T")

_NOT_FAILURES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_STORE_ERRORS = (BotoCoreError, ClientError, HTTPClientError)

_ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or raise the quota",
    errno.EIO: "see whether the disk or the store is well",
}


def s3_config() -> dict[str, Any]:
    """Returns the settings of the client of S3: how often it tries, and how long it waits."""
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "retries": {
            "mode": os.environ.get("AWS_RETRY_MODE", "standard"),
            "total_max_attempts": _read_max_attempts(),
        },
    }


def _read_max_attempts() -> int:
    given = os.environ.get("AWS_MAX_ATTEMPTS") or str(MAX_ATTEMPTS)
    if not (given.isascii() and given.isdigit() and int(given)):
        raise UserError(
            f"AWS_MAX_ATTEMPTS {given!r}: how often a request is sent, 1 or more; "
            f"unset it for {MAX_ATTEMPTS}"
        )
    return int(given)


def _http_errors() -> tuple[type[Exception], ...]:
    """Returns what aiohttp raises, which reads from object stores; nothing where it is not loaded.

    It is not loaded here, because that takes time in every process, also of those without a store.
    """
    error = getattr(sys.modules.get("aiohttp"), "ClientError", None)
    return () if error is None else (error,)


def is_storage_error(error: BaseException) -> bool:
    """Returns whether an error is one of disk, store or network, not of a file's content.

    Parquet's readers raise OSError for bad content too, but without an error number.
    """
    return isinstance(error, (*_STORE_ERRORS, *_http_errors())) or (
        isinstance(error, OSError) and error.errno is not None
    )


@contextmanager
def name_errors(uri: str) -> Iterator[None]:
    """Makes errors of a `with` block name the place that could not be read or written.

    That something is missing, or is there already, passes unchanged.

    Raises:
        AccessDeniedError: It is not allowed, and would not be if it were tried again.
        OSError: Anything else of disk, store or network; says what to do where that is known.
    """
    try:
        yield
    except _NOT_FAILURES:
        raise
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise AccessDeniedError(_denial(uri, error)) from error
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise AccessDeniedError(_denial(uri, error.strerror or error)) from error
        if not is_storage_error(error):
            raise
        raise _named(uri, error.errno or errno.EIO, error.strerror or str(error)) from error
    except (*_STORE_ERRORS, *_http_errors()) as error:
        raise _named(uri, errno.EIO, f"{type(error).__name__}: {error}") from error


def with_cut_reads_repeated(read: Callable[[], T]) -> T:
    """Calls a function that reads; again where the content broke off on the way."""
    for _ in range(CUT_READS - 1):
        try:
            return read()
        except _http_errors():
            time.sleep(CUT_READ_PAUSE_S)
    return read()


def _denial(uri: str, problem: object) -> str:
    return (
        f"{uri}: no access ({problem}); give this process the right to read and write there "
        "(docs/operations/object-stores.md), or choose another place"
    )


def _named(uri: str, number: int, problem: str) -> OSError:
    advice = _ADVICE.get(number)
    return OSError(number, f"{problem}; {advice}" if advice else problem, uri)

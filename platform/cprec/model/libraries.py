"""Keeps libraries quiet, and tells what they refuse from what failed around them.

transformers, PEFT, safetensors and tokenizers refuse a model by many types of exception. What they
refuse is the user's error, which no restart mends. Memory, disk, network and stores are not the
input: their errors stay faults, which are tried again.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EISDIR, ENOENT, ENOTDIR, EPERM

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as transformers_logging

from cluster.errors import CprecError, RecipeError, UserError

ERRORS_OF_A_NAME = (
    EntryNotFoundError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
"""Errors of a hub or its client that say that the name, or a setting, is wrong."""

ERRNOS_OF_A_NAME = {ENOENT, ENOTDIR, EISDIR, EACCES, EPERM}
"""Errors of the operating system that say that a path is wrong."""

NETWORK_LIBRARIES = {
    *("aiohttp", "botocore", "httpcore", "httpcore2", "httpx", "httpx2"),
    *("requests", "socket", "ssl", "urllib3"),
}
"""Libraries whose exceptions are those of a network or a store."""

MEMORY_OR_DEVICE = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|alloc_cpu|no space left"
    r"|input/output error|\bCUDA error|\bNCCL\b",
    re.IGNORECASE,
)
"""Messages of a RuntimeError or a SafetensorError that is not about the input."""

MAX_MESSAGE = 400
"""Characters of a library's message that are shown."""


def silence_libraries() -> None:
    """Turns off hints and progress bars; to be called before a model or tokenizer is used."""
    if not torch.cuda.is_available():
        # transformers asks DeepSpeed for its accelerator, which warns when it has to guess.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # PEFT calls transformers by a deprecated name.
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def refused_input(where: str, kind: type[UserError] = RecipeError) -> Iterator[None]:
    """Raises what a library refuses in the `with` block as the user's error.

    Args:
        where: What was tried, and with which input; the message begins with it.
        kind: Kind of UserError.

    Raises:
        UserError: The library refused its input.
        Exception: What else failed, as it is.
    """
    try:
        yield
    except CprecError:
        raise
    except Exception as error:
        if any(isinstance(cause, LocalEntryNotFoundError) for cause in _causes(error)):
            # Most often a name that is mistyped, on a machine without a network.
            raise kind(
                f"{where}: it is no directory here, nothing of that name is in the local cache "
                f"({HF_HUB_CACHE}), and the hub does not answer ({describe(_causes(error)[-1])}); "
                "correct the name, or fetch it where there is a network"
            ) from error
        if is_fault(error):
            raise
        raise kind(f"{where}: {describe(error)}") from error


def is_fault(error: BaseException) -> bool:
    """Returns whether an error is one of memory, disk, network or a store, not of the input."""
    chain = _causes(error)
    if any(_is_name(cause) for cause in chain):
        return False
    return any(_is_outside(cause) for cause in chain)


def describe(error: BaseException) -> str:
    """Returns type and message of a library's error in one line."""
    message = " ".join(str(error).split())
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]} ..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """Returns an error and what it came from."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _is_name(error: BaseException) -> bool:
    # "Not in the local cache" is said of a network that is down too.
    return isinstance(error, ERRORS_OF_A_NAME) and not isinstance(error, LocalEntryNotFoundError)


def _is_outside(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError | ConnectionError | TimeoutError):
        return True
    if type(error).__module__.partition(".")[0] in NETWORK_LIBRARIES:
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in ERRNOS_OF_A_NAME
    return bool(MEMORY_OR_DEVICE.search(str(error)))

"""Writes to the files of a run that fail once another driver has taken the run over.

A look at the lease before a write is not enough: a process may be paused between the two, and write
when it wakes up. So a write has three parts: it first takes a handle, then looks at the lease, then
writes by means of the handle. A driver that takes over makes all handles void that were taken
before (docs/decisions/020-fenced-writes.md).

On a disk, the handle is a file in the staging folder of the lease. A file of the run is replaced
by moving one out of that folder, lines are appended through a hard link in it, and what is removed
is moved into it. Whoever takes over removes the folder.

On an object store, the handle is the tag (ETag) of the object, and a put needs the same tag.
Whoever takes over writes every object once more. The number of the lease, as so many spaces at
the end, changes its content, and so its tag.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from cluster import local_files, storage
from cluster.conditional import StoredObject
from cluster.errors import PlatformFault
from cluster.storage import connect, filesystem, read_bytes_if_exists, write_bytes

STAGING_SUFFIX = ".writes"
"""End of the name of a staging folder: leases/<number>-<token>.writes."""

MAX_TRIES = 50
"""Tries to write an object that others keep writing, or to remove a folder that others fill."""

PAUSE_S = 0.05
"""Seconds between two tries."""

Check = Callable[[], None]
"""Looks at the lease, and raises if it is lost."""


class RunWriter(Protocol):
    """Writes the files of a run."""

    @property
    def number(self) -> int | None:
        """Number of the lease, which records carry."""

    def replace(self, uri: str, content: bytes) -> None:
        """Writes a text file atomically and durably."""

    def appending(self, uri: str) -> AbstractContextManager[Path]:
        """Yields a path through which lines can be appended to a file on a disk."""

    def remove(self, uri: str) -> None:
        """Removes a file, or everything below a URI."""


class _UnfencedWriter:
    """Writes without a lease: checkpoints of trials, and the records of runs that have ended."""

    number = None

    def replace(self, uri: str, content: bytes) -> None:
        write_bytes(uri, content)

    @contextmanager
    def appending(self, uri: str) -> Iterator[Path]:
        yield Path(filesystem(uri)[1])

    def remove(self, uri: str) -> None:
        storage.remove(uri)


UNFENCED: RunWriter = _UnfencedWriter()


# -- on a disk


def staging_folder(leases_uri: str, number: int, token: str) -> Path:
    """Returns the staging folder of a lease."""
    return Path(filesystem(leases_uri)[1]) / f"{number:06d}-{token}{STAGING_SUFFIX}"


def replace_file(uri: str, content: bytes, staging: Path, check: Check) -> None:
    """Replaces a file on a disk by one from a staging folder.

    Raises:
        FileNotFoundError: The staging folder is gone.
    """
    with connect(uri) as (_, path):
        local_files.replace(Path(path), content, staging, check)


def link_file(uri: str, staging: Path) -> Path:
    """Returns a hard link in a staging folder through which a file can be appended to.

    Raises:
        FileNotFoundError: The staging folder or the file is gone.
    """
    target = Path(filesystem(uri)[1])
    link = staging / target.name
    if not (link.exists() and link.samefile(target)):  # or somebody has replaced the file
        new_link = staging / f"{target.name}.{uuid.uuid4().hex[:8]}"
        new_link.hardlink_to(target)
        new_link.replace(link)
    return link


def remove_path(uri: str, staging: Path, check: Check) -> None:
    """Removes what is at a path, by way of a staging folder.

    Raises:
        FileNotFoundError: The staging folder is gone.
    """
    target = Path(filesystem(uri)[1])
    staged = staging / f"{target.name}.{uuid.uuid4().hex[:8]}"
    check()
    if target.exists():
        target.rename(staged)
        storage.remove(str(staged))


def revoke_older(leases_uri: str, number: int) -> None:
    """Removes the staging folders of all leases with a lower number, on a disk.

    Raises:
        PlatformFault: One of them cannot be removed.
    """
    for folder in Path(filesystem(leases_uri)[1]).glob(f"*{STAGING_SUFFIX}*"):
        prefix = folder.name.partition("-")[0]
        if not (prefix.isdigit() and int(prefix) < number):
            continue
        # A folder that is renamed is gone at once for whoever goes by its path. Where a client of
        # NFS still goes by its handle, nothing can be moved out of it when it is removed.
        revoked = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")
        with suppress(FileNotFoundError):
            folder.rename(revoked)
        for _ in range(MAX_TRIES):
            shutil.rmtree(revoked, ignore_errors=True)
            if not revoked.exists():
                break
            time.sleep(PAUSE_S)
        else:
            raise PlatformFault(
                f"{revoked}: cannot be removed, so the driver that held the run before could still "
                "write; remove it and start again"
            )


# -- on an object store


def replace_tagged(uri: str, render: Callable[[], bytes], number: int, check: Check) -> None:
    """Replaces an object if nobody has done so since the lease was looked at.

    Args:
        uri: URI of the object.
        render: Makes the content, after the tag was read.
        number: Number of the lease.
        check: Looks at the lease.

    Raises:
        PlatformFault: Others keep writing the object.
    """
    stored = StoredObject(uri)
    for _ in range(MAX_TRIES):
        tag = stored.read_tag()
        content = pad(render(), number)
        check()
        # The answer to a put that succeeded may have been lost, and the put repeated.
        if stored.replace(content, tag) or read_bytes_if_exists(uri) == content:
            return
        time.sleep(PAUSE_S)
    raise PlatformFault(f"{uri}: somebody else keeps writing it; only the run's driver may")


def pad(content: bytes, number: int) -> bytes:
    """Returns the content of a text file with spaces at its end, as many as a lease's number.

    They mean nothing in JSON, and nothing in JSON lines: they stand before the last line feed, or
    in a last line that is empty.
    """
    text = content.rstrip(b" \n")
    return text + b" " * number + (b"\n" if text and content.endswith(b"\n") else b"")

"""Files on a disk that are replaced, created and appended to whole or not at all, and durably.

What was written is on the disk when a function returns: the content, and the name of the file too,
which a power cut would otherwise take back. If it raises, a reader sees what was there before.
"""

import errno
import os
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)
"""What a file system answers that cannot make the names in a folder durable on request."""


@dataclass(frozen=True)
class FileEntry:
    """Something directly below a folder.

    Attributes:
        name: Its name.
        is_file: Whether it is a file, or a link to one.
        size: Its size (bytes).
    """

    name: str
    is_file: bool
    size: int


def list_oldest_first(folder: str) -> list[FileEntry]:
    """Lists what is in a folder, the oldest first; entries of the same age are sorted by name."""
    found: list[tuple[int, str, FileEntry]] = []
    with os.scandir(folder) as names:
        for name in names:
            with suppress(FileNotFoundError):  # it was removed meanwhile
                modified = name.stat(follow_symlinks=False).st_mtime_ns
                try:
                    target = name.stat()
                except OSError:  # a link that leads nowhere, or in a circle
                    entry = FileEntry(name.name, False, 0)
                else:
                    entry = FileEntry(name.name, stat.S_ISREG(target.st_mode), target.st_size)
                found.append((modified, name.name, entry))
    return [entry for _, _, entry in sorted(found, key=lambda e: e[:2])]


def list_tags(folder: str) -> dict[str, str]:
    """Returns a tag for each name in a folder, which changes when the content does."""
    tags = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # it was removed meanwhile
                found = entry.stat(follow_symlinks=False)
                if entry.is_symlink():
                    with suppress(OSError):  # it leads nowhere, or in a circle
                        found = entry.stat()
                tags[entry.name] = f"{found.st_mtime_ns} {found.st_ino} {found.st_size}"
    return tags


def replace(
    target: Path,
    content: bytes,
    staging: Path | None = None,
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Replaces or creates a file.

    Args:
        target: The file.
        content: What it shall hold.
        staging: Folder in which the new file is written, of the same file system and there
            already; None: the folder of the target.
        before_rename: Called between the two; what it raises leaves the target as it was.
    """
    make_folder(target.parent)
    partial = _write_partial(target, content, staging or target.parent)
    try:
        before_rename()
        partial.replace(target)  # only a rename is atomic
    except BaseException:
        _unlink_if_possible(partial)
        raise
    _sync_folder(target.parent)


def create(target: Path, content: bytes) -> bool:
    """Creates a file if there is none; returns whether this call did.

    This is a hard link, which NFS makes atomically too.
    """
    make_folder(target.parent)
    partial = _write_partial(target, content, target.parent)
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    finally:
        _unlink_if_possible(partial)
    _sync_folder(target.parent)
    return True


def append(target: Path, content: bytes) -> None:
    """Appends to a file."""
    descriptor = os.open(target, os.O_WRONLY | os.O_APPEND)
    try:
        start = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):  # the first error counts
                os.ftruncate(descriptor, start)
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Creates a folder, and those above it, if they are missing."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _write_partial(target: Path, content: bytes, folder: Path) -> Path:
    """Writes what a target shall hold to a file of a folder, durably, and returns its path."""
    partial = folder / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        _unlink_if_possible(partial)
        raise
    return partial


def _write_all(descriptor: int, content: bytes) -> None:
    """Writes all of some content; a disk that fills up may take a part of it first."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _unlink_if_possible(path: Path) -> None:
    """Removes a file that nobody needs."""
    with suppress(OSError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)

"""Reads and writes files on a local path, file:// or s3:// (through fsspec and s3fs).

Credentials and endpoint are taken from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)
or the machine's role, never from a recipe. What a store does not do at once is tried again
(`cluster.storage_errors`). What it does not do at all is an OSError that names the place, or an
AccessDeniedError.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from cluster import local_files
from cluster.errors import UserError
from cluster.local_files import FileEntry
from cluster.storage_errors import name_errors, s3_config, with_cut_reads_repeated

_CHUNK_BYTES = 1 << 24
"""Bytes that `file_sha256` reads at a time."""


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """Returns the filesystem of a URI, and the path on it.

    Every process calls this for itself: clients of object stores do not pickle well.
    """
    if not is_remote(uri):
        local = _local_filesystem()
        return local, filesystem_path(local, uri)
    options: dict[str, Any] = {"use_listings_cache": False}
    if uri.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = s3_config()
    fs, path = fsspec.core.url_to_fs(uri, **options)
    return fs, path


@cache
def _local_filesystem() -> LocalFileSystem:
    # To find it by the URI each time takes longer than to read a small file.
    return LocalFileSystem()


@contextmanager
def connect(uri: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """Yields the filesystem of a URI and the path on it; errors of the `with` block name the URI.

    Raises:
        AccessDeniedError: It is not allowed.
        OSError: As `name_errors` says.
    """
    fs, path = filesystem(uri)
    with name_errors(uri):
        yield fs, path


def is_remote(uri: str) -> bool:
    """Returns whether a URI is on an object store rather than a disk."""
    return "://" in uri and not uri.startswith("file://")


def absolute_uri(uri: str) -> str:
    """Returns the URI with an absolute path, which holds in any working directory."""
    return uri.rstrip("/") if is_remote(uri) else str(local_path(uri).absolute())


def local_path(uri: str) -> Path:
    """Returns the path of a URI on a disk.

    A leading ~ is the home folder, as for a shell, which does not see what stands in a recipe.
    That of a user whom nobody knows stays as it is.
    """
    return Path(os.path.expanduser(uri.removeprefix("file://")))


def join(uri: str, *parts: str) -> str:
    """Returns the URI of a path below a URI."""
    return posixpath.join(uri, *parts)


def exists(uri: str) -> bool:
    """Returns whether there is a file at a URI, or anything below it."""
    with connect(uri) as (fs, path):
        if is_remote(uri):
            return bool(fs.exists(path))
        try:
            os.stat(path)  # os.path.exists says no where it may not look
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def list_names(uri: str) -> list[str]:
    """Returns the names directly below a URI, sorted; empty if the URI does not exist."""
    try:
        with connect(uri) as (fs, path):
            entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted({posixpath.basename(str(entry).rstrip("/")) for entry in entries} - {""})


def list_oldest_first(uri: str) -> list[FileEntry]:
    """Lists what is directly below a URI, the oldest first, by the clock of the storage.

    Entries of the same age are sorted by name: object stores tell seconds only.
    """
    fs, path = filesystem(uri)
    if is_remote(uri):
        with suppress(FileNotFoundError):
            entries = [
                (
                    str(entry.get("LastModified", "")),
                    FileEntry(
                        posixpath.basename(str(entry["name"]).rstrip("/")),
                        entry["type"] == "file",
                        int(entry.get("size") or 0),
                    ),
                )
                for entry in fs.ls(path, detail=True)
            ]
            return [entry for _, entry in sorted(entries, key=lambda e: (e[0], e[1].name))]
        return []
    try:
        return local_files.list_oldest_first(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_etags(uri: str) -> dict[str, str]:
    """Returns a tag for each name directly below a URI, which changes when the content does.

    Object stores give an ETag; for a disk, the tag is made of time, inode and size.

    Returns:
        Name to tag; empty if the URI is no folder.
    """
    try:
        with connect(uri) as (fs, path):
            if not is_remote(uri):
                return local_files.list_tags(path)
            entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    tag_fields = ("ETag", "etag", "LastModified", "size")
    return {
        posixpath.basename(str(entry["name"]).rstrip("/")): str(
            [entry.get(field) for field in tag_fields]
        )
        for entry in entries
    }


def list_content_tags(uri: str) -> dict[str, str]:
    """Returns a tag for each file directly below a URI, which changes only when the content does.

    It is the ETag and the size. A store without ETags gives a time instead.

    Returns:
        Name to tag; empty if the URI does not exist.
    """
    try:
        with connect(uri) as (fs, path):
            entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    tag_fields = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "created")
    tags = {}
    for entry in entries:
        if entry.get("type") != "directory":
            tag = next((entry[name] for name in tag_fields if entry.get(name)), "")
            name = posixpath.basename(str(entry["name"]))
            tags[name] = f"{str(tag).strip(chr(34))}:{entry.get('size')}"
    return tags


def read_bytes(uri: str) -> bytes:
    """Returns the content of a file.

    Raises:
        UserError: There is no such file, or the URI is a directory.
    """
    content = read_bytes_if_exists(uri)
    if content is None:
        raise UserError(f"{uri}: no such file")
    return content


def read_many(uris: Sequence[str]) -> list[bytes]:
    """Returns the contents of files of one filesystem, in order; some stores fetch in parallel."""
    if not uris:
        return []
    fs, _ = filesystem(uris[0])
    paths = [filesystem_path(fs, uri) for uri in uris]

    def read() -> dict[str, bytes]:
        return fs.cat(paths) if len(paths) > 1 else {paths[0]: fs.cat_file(paths[0])}

    with name_errors(uris[0]):
        contents = with_cut_reads_repeated(read)
    return [bytes(contents[path]) for path in paths]


def filesystem_path(fs: AbstractFileSystem, uri: str) -> str:
    """Returns the path of a URI on a filesystem."""
    return str(fs._strip_protocol(uri))


def read_text(uri: str) -> str:
    """Returns the text of a UTF-8 file.

    Raises:
        UserError: There is no such file, or the URI is a directory.
    """
    return read_bytes(uri).decode("utf-8")


def read_bytes_if_exists(uri: str) -> bytes | None:
    """Returns the content of a file, in one request; None if there is no such file.

    Raises:
        UserError: The URI is a directory.
    """
    try:
        with connect(uri) as (fs, path):
            return with_cut_reads_repeated(lambda: bytes(fs.cat_file(path)))
    except (FileNotFoundError, NotADirectoryError):  # or it would be below a file
        return None
    except IsADirectoryError:
        raise UserError(f"{uri}: a directory, where a file was expected") from None


def read_from(uri: str, start: int) -> bytes | None:
    """Returns the content of a file from a byte on; None if there is no such file.

    A file on a disk that is shorter has nothing there; an object store raises OSError (EINVAL).

    Args:
        uri: Path or URI of the file.
        start: The first byte; a negative one counts from the end, and no further than the start.
    """
    fs, path = filesystem(uri)
    try:
        with name_errors(uri):
            return with_cut_reads_repeated(lambda: bytes(fs.cat_file(path, start=start)))
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_text_if_exists(uri: str) -> str | None:
    """Returns the text of a UTF-8 file; None if there is no such file."""
    content = read_bytes_if_exists(uri)
    return None if content is None else content.decode("utf-8")


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file atomically: other processes see all of it or nothing.

    It is durable when this returns.
    """
    with connect(uri) as (fs, path):
        if is_remote(uri):
            fs.pipe_file(path, content)
        else:
            local_files.replace(Path(path), content)


def create_text(uri: str, content: str) -> bool:
    """Creates a UTF-8 file if there is none; of several processes that try, exactly one does.

    On an object store it is a conditional put (docs/operations/object-stores.md). The answer to a
    put that succeeded may be lost, and the put repeated: what is there already counts as created by
    this call if it has the same content.

    Args:
        uri: Where.
        content: What nobody else would write there, such as one with a random token.

    Returns:
        Whether this call created the file.
    """
    encoded = content.encode("utf-8")
    with connect(uri) as (fs, path):
        if is_remote(uri):
            try:
                fs.pipe_file(path, encoded, mode="create")
            except FileExistsError:
                return read_bytes_if_exists(uri) == encoded
            return True
        return local_files.create(Path(path), encoded) or read_bytes_if_exists(uri) == encoded


def write_text(uri: str, content: str) -> None:
    """Writes a UTF-8 file atomically, as `write_bytes` does."""
    write_bytes(uri, content.encode("utf-8"))


def remove(uri: str) -> None:
    """Removes a file, or everything below a URI; does nothing if the URI does not exist."""
    with connect(uri) as (fs, path), suppress(FileNotFoundError):
        if exists(uri):  # another process may remove it meanwhile
            fs.rm(path, recursive=True)


def remove_file(uri: str) -> None:
    """Removes a file; does nothing if there is none."""
    with connect(uri) as (fs, path), suppress(FileNotFoundError):
        fs.rm_file(path)


def move(source: str, target: str) -> None:
    """Moves a file, a link or a folder to a URI of the same storage that is free.

    The source may have any name: none of its characters has a meaning.
    """
    with name_errors(source):
        if not is_remote(source):
            place = Path(target.removeprefix("file://"))
            local_files.make_folder(place.parent)
            Path(source.removeprefix("file://")).rename(place)
            return
        fs, target_path = filesystem(target)
        path = filesystem_path(fs, source)
        for file in fs.find(path) or [path]:
            fs.cp_file(file, target_path + file.removeprefix(path))
            fs.rm_file(file)


def upload(directory: Path, uri: str, last: str = "") -> None:
    """Writes every file below a local directory to the same relative path below a URI.

    Args:
        directory: The local directory.
        uri: Where to write.
        last: Relative path of the file to write after all others, which marks them as complete.
    """
    files = sorted(
        (path for path in directory.rglob("*") if path.is_file()),
        key=lambda path: (path.relative_to(directory).as_posix() == last, path),
    )
    for file in files:
        write_bytes(join(uri, file.relative_to(directory).as_posix()), file.read_bytes())


def download(uri: str, directory: Path) -> Path:
    """Copies every file below a URI into a local directory, and returns the directory."""
    with connect(uri) as (fs, path):
        for file in fs.find(path):
            target = directory / posixpath.relpath(file, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(file, str(target))
    return directory


def download_files(uri: str, names: Sequence[str], directory: Path) -> None:
    """Copies named files directly below a URI into a local directory."""
    fs, path = filesystem(uri)
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        with name_errors(join(uri, name)):
            fs.get_file(posixpath.join(path, name), str(directory / name))


def sha256(content: bytes) -> str:
    """Returns the hex digest of bytes."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(uri: str) -> str:
    """Returns the hex digest of a file of any size.

    Raises:
        UserError: There is no such file.
    """
    digest = hashlib.sha256()
    try:
        with connect(uri) as (fs, path), fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    return digest.hexdigest()

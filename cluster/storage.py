"""Files on a path, file:// or s3://, behind one small vocabulary (fsspec; s3fs for object stores).

Credentials and endpoint come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) or the machine's role, never from a recipe.
"""

import hashlib
import os
import posixpath
import uuid
from collections.abc import Sequence
from pathlib import Path

import fsspec
from fsspec import AbstractFileSystem

from cluster.errors import UserError

_CHUNK_BYTES = 1 << 24
"""Bytes that are digested at a time."""


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URI and the path on it. Made anew in every process: clients do not survive pickling well."""
    options = {"use_listings_cache": False} if is_remote(uri) else {}
    fs, path = fsspec.core.url_to_fs(uri, **options)
    return fs, path


def is_remote(uri: str) -> bool:
    """Whether a URI names an object store rather than a disk."""
    return "://" in uri and not uri.startswith("file://")


def absolute_uri(uri: str) -> str:
    """The same place with an absolute path, so that processes with other working directories agree on it."""
    return uri.rstrip("/") if is_remote(uri) else str(Path(uri.removeprefix("file://")).absolute())


def join(uri: str, *parts: str) -> str:
    """A place below a URI."""
    return posixpath.join(uri, *parts)


def exists(uri: str) -> bool:
    """Whether a file, or anything below a prefix, is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def list_names(uri: str) -> list[str]:
    """Names directly below a URI, sorted; empty if there is no such place."""
    fs, path = filesystem(uri)
    if not fs.exists(path):
        return []
    return sorted(
        {posixpath.basename(str(p).rstrip("/")) for p in fs.ls(path, detail=False)} - {""}
    )


def list_etags(uri: str) -> dict[str, str]:
    """Names directly below a URI, each with what changes whenever its content does; empty if there is no such place."""
    fs, path = filesystem(uri)
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    told = ("ETag", "etag", "mtime", "LastModified", "ino", "size")
    return {
        posixpath.basename(str(of["name"]).rstrip("/")): str([of.get(key) for key in told])
        for of in found
    }


def read_bytes(uri: str) -> bytes:
    """A whole file. Raises UserError naming the place when it is not there."""
    fs, path = filesystem(uri)
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{uri}: a directory, where a file was expected") from None


def read_many(uris: Sequence[str]) -> list[bytes]:
    """Whole files of one place, in their order, fetched at the same time where the store can."""
    if not uris:
        return []
    fs, _ = filesystem(uris[0])
    paths = [filesystem_path(fs, uri) for uri in uris]
    found = fs.cat(paths) if len(paths) > 1 else {paths[0]: fs.cat_file(paths[0])}
    return [bytes(found[path]) for path in paths]


def filesystem_path(fs: AbstractFileSystem, uri: str) -> str:
    """The path of a URI on a filesystem."""
    return str(fs._strip_protocol(uri))


def read_text(uri: str) -> str:
    """A whole UTF-8 file. Raises UserError naming the place when it is not there."""
    return read_bytes(uri).decode("utf-8")


def write_bytes(uri: str, content: bytes) -> None:
    """A whole file, visible at once or not at all, durable when this returns."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        fs.pipe_file(path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def write_text(uri: str, content: str) -> None:
    """A whole UTF-8 file, visible at once or not at all."""
    write_bytes(uri, content.encode("utf-8"))


def remove(uri: str) -> None:
    """A file, or everything below a prefix; nothing if it is not there."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def upload(directory: Path, uri: str, last: str = "") -> None:
    """Every file below a local directory to the same relative place below a URI; the one named `last` after all others."""
    for file in sorted(
        (p for p in directory.rglob("*") if p.is_file()),
        key=lambda p: (p.relative_to(directory).as_posix() == last, p),
    ):
        write_bytes(join(uri, file.relative_to(directory).as_posix()), file.read_bytes())


def download(uri: str, directory: Path) -> Path:
    """Every file below a URI into a local directory, which is returned."""
    fs, path = filesystem(uri)
    for found in fs.find(path):
        target = directory / posixpath.relpath(found, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(found, str(target))
    return directory


def is_storage_error(error: Exception) -> bool:
    """Whether an error is of a disk, store or network, and not of what a file holds: parquet's readers raise OSError too, without a number."""
    return isinstance(error, OSError) and error.errno is not None


def sha256(content: bytes) -> str:
    """Hex digest of a file's content."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(uri: str) -> str:
    """Hex digest of a file, however large. Raises UserError naming the place when it is not there."""
    fs, path = filesystem(uri)
    digest = hashlib.sha256()
    try:
        with fs.open(path, "rb") as file:
            while piece := file.read(_CHUNK_BYTES):
                digest.update(piece)
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    return digest.hexdigest()

"""Checks a storage: rights, the conditions of its writes, and its speed.

Everything is written below one folder of a random name, which is removed in the end.
"""

import os
import posixpath
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.conditional import StoredObject
from cluster.errors import CorpusError
from cluster.storage import (
    absolute_uri,
    create_text,
    is_remote,
    join,
    list_names,
    read_bytes,
    remove,
    write_bytes,
)
from corpus.store.conditional_puts import require_conditional_puts
from cprec.workflows.doctor.findings import Finding

PROBE_BYTES = 8 << 20
"""Bytes that are written and read to measure the speed of a storage."""

MIN_BYTES_PER_S = 10e6
"""Speed below which a storage is slow: checkpoints of adapters take seconds, of models minutes."""


def check_storage(uri: str) -> Iterator[Finding]:
    """Looks whether runs can be kept at a place.

    Args:
        uri: `storage` of a recipe.
    """
    uri = absolute_uri(uri)
    with _probe_folder(uri) as folder:
        yield _check_rights(uri, folder)
        yield _check_speed(uri, folder)
        yield _check_conditions(uri, folder)


def check_commits(uri: str) -> Iterator[Finding]:
    """Looks whether versions can be committed to a corpus, which training does not need.

    Args:
        uri: `corpus` of a recipe.
    """
    uri = absolute_uri(uri)
    name = "corpus: commits"
    only_read = "builds and appends need it, training does not; give the right to write"
    try:
        with _probe_folder(uri) as folder:
            require_conditional_puts(folder)
            if not create_text(join(folder, "commit"), uuid.uuid4().hex):
                raise OSError(f"{uri}: a file that nobody has made cannot be created")
    except CorpusError as error:  # a store that would lose commits
        yield Finding(name, "fail", str(error))
    except Exception as error:  # whatever a place says that may only be read
        yield Finding(name, "warn", str(error), "write and remove", only_read)
    else:
        yield Finding(name, "ok", "one of several writers wins")


def _check_rights(uri: str, folder: str) -> Finding:
    """Writes, reads, lists and removes a file.

    Raises:
        AccessDeniedError: One of them is not allowed.
        OSError: One of them did not work, or had no effect.
    """
    file, content = join(folder, "rights"), uuid.uuid4().hex.encode()
    write_bytes(file, content)
    if read_bytes(file) != content:
        raise OSError(f"{uri}: a file that was written has another content when it is read")
    if "rights" not in list_names(folder):
        raise OSError(f"{uri}: a file that was written is not listed")
    remove(file)
    if "rights" in list_names(folder):
        raise OSError(f"{uri}: a file that was removed is still listed")
    return Finding("storage: rights", "ok", f"{uri}: write, read, list, remove")


def _check_speed(uri: str, folder: str) -> Finding:
    """Measures one writer and one reader."""
    file, content = join(folder, "speed"), os.urandom(PROBE_BYTES)
    began = time.perf_counter()
    write_bytes(file, content)
    written = time.perf_counter()
    is_same = read_bytes(file) == content
    read = time.perf_counter()
    speeds = PROBE_BYTES / (written - began), PROBE_BYTES / (read - written)
    seen = f"write {speeds[0] / 1e6:,.0f} MB/s, read {speeds[1] / 1e6:,.0f} MB/s"
    if not is_same:
        return Finding("storage: speed", "fail", f"{uri}: other bytes are read than were written")
    is_slow = min(speeds) < MIN_BYTES_PER_S
    return Finding(
        "storage: speed",
        "warn" if is_slow else "ok",
        seen,
        f"{MIN_BYTES_PER_S / 1e6:.0f} MB/s or more",
        "use storage near the nodes, or save less often (checkpoint.every_samples)"
        if is_slow
        else "",
    )


def _check_conditions(uri: str, folder: str) -> Finding:
    """Tests that a second writer is refused, by which a run has one driver."""
    name, allowed = "storage: conditions", "the second of two writers is refused"
    file = join(folder, "conditions")
    is_refused = create_text(file, "first") and not create_text(file, "second")
    if is_remote(uri):
        is_refused = is_refused and not StoredObject(file).replace(b"third", '"none"')
    if is_refused:
        return Finding(name, "ok", allowed)
    return Finding(
        name,
        "warn",
        f"{uri} lets both of two writers through (If-None-Match, If-Match)",
        allowed,
        "start no second driver of a run, or use a store that honours conditions "
        "(docs/operations/object-stores.md)",
    )


@contextmanager
def _probe_folder(uri: str) -> Iterator[str]:
    """Yields the URI of a folder that is not there yet; removes it, and what was made above it."""
    folder = join(uri, f".doctor-{uuid.uuid4().hex[:12]}")
    missing = [] if is_remote(uri) else _missing_folders(Path(posixpath.dirname(folder)))
    try:
        yield folder
    finally:
        remove(folder)
        for path in missing:
            with suppress(OSError):  # somebody else has put something there meanwhile
                path.rmdir()


def _missing_folders(folder: Path) -> list[Path]:
    """Returns a folder and those above it that do not exist, the innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing

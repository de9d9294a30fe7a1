"""Storage fails at the n-th operation of a small run, for every n; the run ends as it would have.

Every operation on a file below the run's folder is counted, by the interpreter's own audit events:
opening, renaming, linking, removing, listing, and with them the flush to the disk.
"""

import errno
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from corpus.build import build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import to_yaml
from cprec.runs import recipe_lock
from cprec.runs.control import lease
from tests import small_run
from tests.unit.corpus.worlds import settings, shop, write_root

OPERATIONS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.scandir"}
"""Audit events whose first argument is a path."""


class Died(BaseException):
    """The process is dead: nothing handles this, and nothing of it touches storage any more."""


class FailingDisk:
    """Fails operations below a folder.

    Attributes:
        operations: Operations so far.
    """

    def __init__(self, folder: Path, first: int, count: int, error: BaseException) -> None:
        """Lets `count` operations fail from the number `first` on (from 0)."""
        self._folder, self._error = str(folder), error
        self._failing = range(first, first + count)
        self._thread = threading.get_ident()
        self.operations = 0

    def on_operation(self, path: Any) -> None:
        """Counts an operation, and raises if it is to fail."""
        if threading.get_ident() != self._thread or not str(path).startswith(self._folder):
            return
        number = self.operations
        self.operations += 1
        if number in self._failing:
            raise self._error


_active: list[FailingDisk] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active and event in OPERATIONS and arguments:
        path = arguments[0]
        if isinstance(path, str | os.PathLike):
            _active[0].on_operation(os.fspath(path))


@pytest.fixture(scope="module", autouse=True)
def audited() -> None:
    """Listens to audit events, which cannot be undone: without a disk, it does nothing."""
    sys.addaudithook(_hook)


@contextmanager
def failing(disk: FailingDisk) -> Iterator[None]:
    """Lets a disk fail while a `with` block runs."""
    _active.append(disk)
    try:
        yield
    finally:
        _active.clear()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    root = write_root(folder / "root", shop(("A", "B"), users=12, items=25))
    return build(settings(root, domains=("A", "B"), held_out=()), 0, str(folder / "corpus"), print)


@pytest.fixture
def recipe(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """The recipe of a run on a disk in memory, which takes many small files at once."""
    small_run.without_streams(monkeypatch)
    # What a process of this test holds is free as soon as it is dead; nothing renews meanwhile.
    monkeypatch.setattr(lease, "is_alive", lambda _: False)
    monkeypatch.setattr(lease, "RENEWAL_S", 1e6)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        recipe = Recipe(storage=f"{folder}/runs", run="trunk", corpus=corpus.uri)
        text = to_yaml(recipe)
        monkeypatch.setattr(recipe_lock, "to_yaml", lambda _: text)  # the slowest part
        yield recipe


def start(recipe: Recipe) -> None:
    """Begins with an empty folder, in which two requests wait."""
    shutil.rmtree(Path(recipe.storage) / "trunk", ignore_errors=True)
    requests = Path(recipe.storage) / "trunk" / "requests"
    requests.mkdir(parents=True)
    (requests / "1.json").write_text('{"do": "hold"}')
    (requests / "2.json").write_text('{"do": "release"}')


def drive_through(recipe: Recipe, corpus: Corpus, disk: FailingDisk) -> None:
    """Drives the run while a disk fails, and after that again, as whoever watches it would."""
    with suppress(Exception, Died), failing(disk):
        small_run.drive(recipe, corpus)
    small_run.drive(recipe, corpus)


KINDS = {
    "full at one moment": (1, OSError(errno.ENOSPC, "No space left on device"), 1),
    "away for a while": (8, OSError(errno.EIO, "Input/output error"), 3),
    "read-only from then on": (1 << 30, OSError(errno.EROFS, "Read-only file system"), 3),
    "the process dies": (1 << 30, Died(), 1),
}
"""Kind of failure: (operations that fail, what they raise, step between two n that are tried)."""


@pytest.mark.parametrize("kind", KINDS)
def test_whenever_storage_fails_a_run_ends_as_it_would_have(
    recipe: Recipe, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    count, error, step = KINDS[kind]
    monkeypatch.setattr(os, "fsync", _cut_where_the_disk_is_full)
    start(recipe)
    undisturbed = FailingDisk(Path(recipe.storage), 0, 0, error)
    with failing(undisturbed):
        report = small_run.drive(recipe, corpus)
    assert (report.missing, report.repeated) == (0, 0)
    expected = small_run.outcome(recipe)
    problems = []
    for n in range(0, undisturbed.operations, step):
        start(recipe)
        try:
            drive_through(recipe, corpus, FailingDisk(Path(recipe.storage), n, count, error))
            if small_run.outcome(recipe) != expected:
                problems.append(f"{n}: another outcome")
        except Exception as failure:  # whatever it is, the run could not be started again
            problems.append(f"{n}: {type(failure).__name__}: {failure}")
    assert undisturbed.operations > 100
    assert not problems, "\n".join(problems)


def _cut_where_the_disk_is_full(descriptor: int) -> None:
    """Plays fsync: where it fails, only half of what was written since the start is there."""
    if not _active:
        return
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    try:
        _active[0].on_operation(path)
    except OSError:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 1)
        raise

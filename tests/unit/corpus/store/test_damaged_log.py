"""A log that lacks something is refused by name, and is never read as a smaller corpus."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import CorpusError
from corpus.build import build
from corpus.inspect.injections import find_titles_with_injections
from corpus.store import delta
from corpus.store.tables import ITEMS, SAMPLES, Corpus
from tests.unit.corpus.worlds import settings, shop, two_versions, write_root

DOMAINS = ("A", "B", "C")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return two_versions(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def uri(whole: Corpus, tmp_path: Path) -> str:
    shutil.copytree(whole.uri, tmp_path / "corpus")
    return str(tmp_path / "corpus")


def commit_file(uri: str, table: str, version: int) -> Path:
    return Path(uri, table, "_delta_log", f"{version:020d}.json")


@pytest.mark.parametrize("version", [None, 0, 1])
def test_a_missing_commit_of_samples_is_named(uri: str, version: int | None) -> None:
    file = commit_file(uri, SAMPLES, 0)
    file.unlink()
    with pytest.raises(CorpusError, match=f"^{re.escape(str(file))}: .* log is missing; restore"):
        Corpus.open(uri, version)


@pytest.mark.parametrize("read", [Corpus.read_items, find_titles_with_injections])
@pytest.mark.parametrize("version", [0, 1])
def test_a_missing_commit_of_items_is_named(
    uri: str, read: Callable[[Corpus], object], version: int
) -> None:
    corpus = Corpus.open(uri)
    commit_file(uri, ITEMS, version).unlink()
    with pytest.raises(CorpusError, match=rf"0{version}\.json: .* log is missing"):
        read(corpus)


@pytest.mark.parametrize("numbers", [(0, 0), (1,)])
def test_items_that_are_not_at_their_position_are_refused(
    whole: Corpus, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...]
) -> None:
    live = sorted(whole.item_files(), key=lambda file: -file.rows)
    monkeypatch.setattr(Corpus, "item_files", lambda _: tuple(live[number] for number in numbers))
    with pytest.raises(CorpusError, match="items are missing or there twice"):
        whole.read_titles()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_commit_that_was_cut_is_named(uri: str, keep: float) -> None:
    file = commit_file(uri, SAMPLES, 1)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorpusError, match=f"^{re.escape(str(file))}: .* log is damaged"):
        Corpus.open(uri)


@pytest.mark.parametrize("table", [SAMPLES, ITEMS])
@pytest.mark.parametrize("version", [0, 1])
def test_a_commit_that_was_cut_at_the_end_of_a_line_is_noticed(
    uri: str, table: str, version: int
) -> None:
    """Each line is whole then, and files of samples or items are not named any more."""
    file = commit_file(uri, table, version)
    lines = file.read_bytes().strip().split(b"\n")
    last = max(number for number, line in enumerate(lines) if line.startswith(b'{"add"'))
    file.write_bytes(b"\n".join(lines[:last]))
    delta._COMMIT_CACHE.clear()
    with pytest.raises(CorpusError, match=r"so a file of it was cut|items are missing"):
        Corpus.open(uri).read_items()


def test_any_character_may_be_in_the_path_of_the_data_root(tmp_path: Path) -> None:
    root = write_root(tmp_path / "a\u2028b\u0085c\x0bd", shop(DOMAINS))
    corpus = build(settings(root), 0, str(tmp_path / "corpus"), print)
    delta._COMMIT_CACHE.clear()
    assert Corpus.open(corpus.uri).commits[0].metadata["origin"]["root"] == str(root)


def test_a_commit_that_a_listing_overlooks_is_not_missing(
    whole: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that changes while it is listed may be seen with a later entry only."""
    listings: list[str] = []

    def overlook(table_uri: str) -> dict[int, str]:
        etags = list_commits(table_uri)
        listings.append(table_uri)
        return {1: etags[1]} if len(listings) == 1 else etags

    list_commits = delta._list_commits
    monkeypatch.setattr(delta, "_list_commits", overlook)
    assert [commit.version for commit in delta.read_commits(f"{whole.uri}/{SAMPLES}")] == [0, 1]

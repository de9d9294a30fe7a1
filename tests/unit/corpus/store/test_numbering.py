"""Items are numbered once; what a killed append or another build left never shows in titles."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import corpus.build
from cluster.errors import CommitConflictError, CorpusError, DataError
from corpus.append import append, preview
from corpus.build import build
from corpus.ingest.titles import disambiguate_titles
from corpus.local.sample_files import write_sample_files
from corpus.settings import DataSettings
from corpus.store import catalogue, delta
from corpus.store.commits import Commit
from corpus.store.tables import ITEMS, ITEMS_SCHEMA, Corpus
from corpus.versions import commit_version
from tests.unit.corpus.worlds import Row, settings, shop, write_root

BATCHES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("uvwxyz"), st.sampled_from(["a", "A", "b"]), min_size=1),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)
"""Appends in turn: the titles of their items, and whether they were killed."""


class Killed(BaseException):
    pass


def killed(*_: object) -> None:
    raise Killed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    place = tmp_path_factory.mktemp("base")
    root = write_root(place / "root", shop(("A", "B", "C")))
    return build(settings(root), 0, str(place / "corpus"), print)


@pytest.fixture
def corpus_uri(base: Corpus, tmp_path: Path) -> str:
    shutil.copytree(base.uri, tmp_path / "corpus")
    return str(tmp_path / "corpus")


def more(folder: Path, prefix: str = "Item", rows: tuple[Row, ...] = ()) -> DataSettings:
    """Writes a data root of domain D, and returns the settings of its append."""
    world = shop(("D",), seed=5)
    world["D"] += rows
    titles = {item: f"{prefix} {item}" for _, item, _ in world["D"]}
    return settings(write_root(folder, world, titles), domains=("D",), held_out=())


def titles_of_version(corpus: Corpus) -> list[str]:
    items = pl.DataFrame(corpus.read_items())
    is_used = catalogue.items_in_runs(items, corpus.commits[-1].metadata["item_runs"])
    return items.filter(is_used)["title"].to_list()


@hypothesis_settings(max_examples=20)
@given(BATCHES)
def test_any_appends_number_and_title_as_if_none_had_been_killed(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[dict[str, str], bool]]
) -> None:
    uri = str(tmp_path_factory.mktemp("corpus"))
    version = catalogue.create_items(uri, pl.DataFrame(ITEMS_SCHEMA.empty_table()), "0")
    expected: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for batch, is_killed in batches:
        metadata = {
            "items_version": version,
            "item_runs": catalogue.encode_runs({"D": np.array([*numbers.values()], np.int64)}),
        }
        corpus = Corpus(uri, 0, (Commit(0, metadata, (), frozenset(), "", 0),))
        rows = [("D", item, title) for item, title in sorted(batch.items())]
        items = pl.DataFrame(rows, schema=["domain", "item_id", "title"], orient="row")
        numbered = catalogue.number_items(corpus, items)
        added = catalogue.add_items(uri, numbered, "append")
        assert sorted(numbered.items["item_id"]) == sorted(batch)
        if is_killed:
            continue
        new = [item for item in sorted(batch) if item not in expected]
        titles, num_renamed = disambiguate_titles(
            [batch[item] for item in new], list(expected.values())
        )
        expected |= dict(zip(new, titles, strict=True))
        assert numbered.num_renamed == num_renamed
        for index, _, item, title in numbered.items.rows():
            assert title == expected[item]
            assert numbers.setdefault(item, index) == index
        version = added
    stored = pl.concat(
        [
            pl.DataFrame(delta.open_parquet(file.uri).read(use_threads=False))
            for file in delta.live_files(delta.read_commits(f"{uri}/{ITEMS}"))
        ]
    )
    assert sorted(stored["item_index"]) == list(range(stored.height))
    assert not stored.select("domain", "item_id", "title").is_duplicated().any()
    by_number = dict(zip(stored["item_index"], stored["title"], strict=True))
    assert {item: by_number[index] for item, index in numbers.items()} == expected


def test_titles_that_a_killed_append_had_are_not_those_of_the_next(
    corpus_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("corpus.local.append.write_sample_files", killed)
        with pytest.raises(Killed):
            append(more(tmp_path / "wrong", "Wrong"), 0, corpus_uri, print)
    grown = append(more(tmp_path / "right"), 0, corpus_uri, print)
    assert not any(title.startswith("Wrong") for title in titles_of_version(grown))
    titles = grown.read_titles()
    for row in grown.read_samples("domain/D", "train").to_pylist():
        assert all(titles[item].startswith("Item D") for item in row["candidates"])


def test_an_append_that_is_refused_leaves_nothing(corpus_uri: str, tmp_path: Path) -> None:
    busy = tuple(("busy", f"D{item:02d}", item) for item in range(30))
    before = sorted(Path(corpus_uri).rglob("*"))
    with pytest.raises(DataError, match="user busy interacted with"):
        append(more(tmp_path / "busy", rows=busy), 0, corpus_uri, print)
    assert sorted(Path(corpus_uri).rglob("*")) == before


def another_build(uri: str) -> None:
    """Does what a build of other data at the same place does to the items."""
    items = pl.DataFrame(
        {"item_index": [0], "domain": ["Z"], "item_id": ["Z00"], "title": ["Another"]}
    )
    catalogue.create_items(uri, items, "another")


def test_items_of_a_corpus_that_is_there_are_not_replaced(corpus_uri: str) -> None:
    log = sorted(Path(corpus_uri, ITEMS).rglob("*"))
    with pytest.raises(CommitConflictError, match="another build made version 0"):
        another_build(corpus_uri)
    assert sorted(Path(corpus_uri, ITEMS).rglob("*")) == log


def test_a_build_whose_items_another_one_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "corpus")

    def slow(*arguments: object) -> object:
        another_build(uri)
        return write_sample_files(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("corpus.local.sample_files.write_sample_files", slow)
    root = write_root(tmp_path / "root", shop(("A", "B", "C")))
    with pytest.raises(CommitConflictError, match="another build replaced the items"):
        build(settings(root), 0, uri, print)
    with pytest.raises(CorpusError, match="no corpus here"):
        Corpus.open(uri)


@pytest.mark.parametrize("function", [append, preview])
def test_a_corpus_whose_items_were_replaced_is_read_but_not_appended_to(
    base: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., object],
) -> None:
    """Another build replaces them in the moment before the commit."""
    uri = str(tmp_path / "corpus")

    def late(*arguments: object, **named: object) -> Corpus:
        another_build(uri)
        return commit_version(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus.build, "commit_version", late)
    built = build(settings(write_root(tmp_path / "root", shop(("A", "B", "C")))), 0, uri, print)
    assert built.read_titles() == base.read_titles()
    for domain in ("D", "A"):
        data = settings(
            write_root(tmp_path / domain, shop((domain,), seed=5)), domains=(domain,), held_out=()
        )
        with pytest.raises(CorpusError, match="another build replaced the items of this corpus"):
            function(data, 0, uri, print)

"""Text in a corpus: windows that joined are the text, in a version that changes nothing else."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError, RecipeError
from corpus.append import append
from corpus.append_text import append_text
from corpus.build import build
from corpus.ingest.plain_text import read_plain_text
from corpus.inspect import leakage
from corpus.inspect.inspection import inspect_corpus
from corpus.sampling.replay_text import MAX_WINDOW_BYTES, split_text, text_source
from corpus.store import delta, tables
from corpus.store.tables import Corpus
from tests.unit.corpus.worlds import settings, shop, write_root

LETTERS = st.text(st.sampled_from("ab é日 \n\t"), max_size=300)
PROSE = (
    "\n\n".join(
        f"Day {day}. The kettle sang, and nobody in the house wished to be the first who spoke."
        for day in range(40)
    )
    + "\n"
)


@given(LETTERS, st.integers(4, 40))
def test_windows_joined_are_the_text(text: str, max_bytes: int) -> None:
    windows = split_text(text, max_bytes)
    assert "".join(windows) == text.rstrip()
    assert all(0 < len(window.encode()) <= max_bytes for window in windows)


@given(LETTERS, st.integers(4, 40))
def test_windows_are_cut_before_white_space_and_as_late_as_possible(
    text: str, max_bytes: int
) -> None:
    for window, following in pairwise(split_text(text, max_bytes)):
        white_space = following[: len(following) - len(following.lstrip())]
        next_word = white_space + (following.split() or [""])[0]
        # A word that is longer than a window is cut inside.
        is_long_word = len(next_word.encode()) > max_bytes or not following[0].isspace()
        assert is_long_word or len((window + next_word).encode()) > max_bytes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Version 0: interactions; 1: text; 2: more interactions; 3: another text of the same name."""
    folder = tmp_path_factory.mktemp("text")
    world = shop(["A", "B", "C"])
    root = write_root(folder / "root", world)
    uri = str(folder / "corpus")
    build(settings(root), 0, uri, print)
    (folder / "prose.txt").write_text(PROSE)
    assert append_text(str(folder / "prose.txt"), uri, print).version == 1
    later = write_root(
        folder / "later",
        {"A": [(f"u{user:03d}", f"A{user % 30:02d}", 5_000 + user) for user in range(20)]},
    )
    assert append(settings(later, domains=("A",), held_out=()), 0, uri, print).version == 2
    (folder / "prose.txt").write_text(PROSE + "A day more.")
    return append_text(str(folder / "prose.txt"), uri, print)


def test_a_text_is_a_source_of_its_own(corpus: Corpus) -> None:
    assert corpus.version == 3
    first, second = (s for s in corpus.streams() if s.source == "text/prose")
    assert (first.version, second.version) == (1, 3)
    rows = tables.read_rows(first, 0, first.rows)
    assert sorted(rows["text"].to_pylist()) == sorted(split_text(PROSE))
    assert rows["history"].null_count == rows["target"].null_count == first.rows > 1
    ids = [
        i for s in corpus.streams() for i in tables.read_rows(s, 0, s.rows)["sample_id"].to_pylist()
    ]
    assert len(set(ids)) == len(ids)
    assert [n % (1 << 64) for n in rows["sample_id"].to_pylist()] == sorted(
        n % (1 << 64) for n in rows["sample_id"].to_pylist()
    )


def test_text_changes_nothing_of_the_behaviours(corpus: Corpus) -> None:
    before, after = (Corpus.open(corpus.uri, version).statistics() for version in (0, 1))
    assert {**before, "version": 1, "dropped": {}} == after
    assert Corpus.open(corpus.uri, 1).read_titles() == Corpus.open(corpus.uri, 0).read_titles()
    leak_counts = inspect_corpus(corpus).leak_counts
    assert {name: leak_counts[name] for name in leakage.LEAK_CHECKS} == dict.fromkeys(
        leakage.LEAK_CHECKS, 0
    )


def test_other_readers_of_delta_see_the_text(corpus: Corpus) -> None:
    table = DeltaTable(f"{corpus.uri}/samples").to_pyarrow_table()
    assert table["text"].drop_null().length() == sum(
        s.rows for s in corpus.streams() if s.source == "text/prose"
    )


def test_appending_the_same_text_again_changes_nothing(corpus: Corpus) -> None:
    again = append_text(str(Path(corpus.uri).parent / "prose.txt"), corpus.uri, print)
    assert again.version == 3
    assert Corpus.open(corpus.uri).version == 3


def test_text_is_appended_to_a_table_without_a_text_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier releases of cprec built such tables."""
    monkeypatch.setattr("corpus.versions.SAMPLES_TABLE_SCHEMA", tables.PARTITIONED_SAMPLE_SCHEMA)
    uri = build(
        settings(write_root(tmp_path / "root", shop(["A", "B", "C"]))),
        0,
        str(tmp_path / "corpus"),
        print,
    ).uri
    monkeypatch.undo()
    log = (tmp_path / "corpus" / "samples" / "_delta_log" / f"{0:020d}.json").read_text()
    assert all(
        "text" not in json.loads(line)["metaData"]["schemaString"]
        for line in log.splitlines()
        if "metaData" in line
    )
    (tmp_path / "prose.txt").write_text(PROSE)
    appended = append_text(str(tmp_path / "prose.txt"), uri, print)
    assert sorted(appended.read_samples("text/prose", "train")["text"].to_pylist()) == sorted(
        split_text(PROSE)
    )
    assert len(delta.read_commits(f"{uri}/samples")) == 2


def test_files_without_usable_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n")
    for name, message in (
        ("latin.txt", "not UTF-8"),
        ("blank.txt", "holds no text"),
        ("none.txt", "nothing at"),
    ):
        with pytest.raises(RecipeError, match=f"the.key: .*{message}|the.key: {message}"):
            read_plain_text(str(tmp_path / name), "the.key")
    assert text_source("s3://bucket/some/plain.v2.txt") == "text/plain.v2"
    with pytest.raises(DataError, match="rename the file"):
        text_source("/tmp/my text.txt")
    assert MAX_WINDOW_BYTES >= 4

"""Builds from a data root to a corpus on disk, and reading it back."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable

from cluster.errors import CorpusError, DataError
from corpus.backend import UncommittedSamples
from corpus.build import build
from corpus.fingerprints import fingerprint, rules
from corpus.inspect import console_tables
from corpus.local.sample_files import write_sample_files
from corpus.store import tables
from corpus.store.tables import Corpus, count_files, file_numbers, read_rows
from tests.unit.corpus.worlds import Row, settings, shop, write_root

DOMAINS = ("A", "B", "C")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("root"), shop(DOMAINS))


@pytest.fixture(scope="module")
def corpus(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(settings(root), 0, str(tmp_path_factory.mktemp("corpus")), print)


def test_every_source_has_its_streams_in_order(corpus: Corpus) -> None:
    assert [(s.source, s.version) for s in corpus.streams()] == [
        ("domain/A", 0),
        ("domain/B", 0),
        ("downstream/C", 0),
        ("mixed", 0),
    ]
    assert [s.source for s in corpus.streams("test")] == ["domain/A", "domain/B", "downstream/C"]
    assert {s.source: s.rows for s in corpus.streams("test")} == {
        "domain/A": 40,
        "domain/B": 40,
        "downstream/C": 40,
    }
    assert {str(s.source): s.rows for s in corpus.streams()}["domain/A"] == 40 * 3


def test_rows_are_in_the_order_of_their_unsigned_ids(corpus: Corpus) -> None:
    for stream in (*corpus.streams(), *corpus.streams("validation")):
        ids = read_rows(stream, 0, stream.rows)["sample_id"].to_numpy().view(np.uint64)
        assert np.all(ids[1:] > ids[:-1])


def test_any_range_of_rows_is_a_slice_of_the_whole(corpus: Corpus) -> None:
    stream = pickle.loads(pickle.dumps(corpus.streams()[0]))
    whole = corpus.read_samples("domain/A", "train")
    for start, stop in [
        (0, 0),
        (0, 1),
        (5, 77),
        (stream.rows - 1, stream.rows),
        (stream.rows, stream.rows),
    ]:
        assert read_rows(stream, start, stop).equals(whole.slice(start, stop - start))
    with pytest.raises(ValueError, match=r"rows 0\.\.121 of a stream of 120"):
        read_rows(stream, 0, 121)


def test_ranges_across_files_and_row_groups(
    root: Path, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "TARGET_FILE_ROWS", 32)
    monkeypatch.setattr("corpus.store.delta.MIN_ROW_GROUP_ROWS", 8)
    split = build(settings(root), 0, str(tmp_path), print)
    stream = split.streams()[0]
    assert len(stream.files) == 4
    whole = corpus.read_samples("domain/A", "train")
    assert split.read_samples("domain/A", "train").equals(whole)
    assert all(read_rows(stream, i, i + 41).equals(whole.slice(i, 41)) for i in range(0, 79, 3))


def test_files_are_equal_ranges_of_ids() -> None:
    ids = np.array([0, 2**62, 2**63 - 1, -(2**63), -1], np.int64)
    assert file_numbers(ids, 1).tolist() == [0] * 5
    assert file_numbers(ids, 4).tolist() == [0, 1, 1, 2, 3]
    assert [count_files(n) for n in (0, 1, 1 << 18, (1 << 18) + 1, 3 << 18, (4 << 18) + 1)] == [
        1,
        1,
        1,
        2,
        4,
        8,
    ]


def test_titles_are_at_their_item_index(corpus: Corpus) -> None:
    items = corpus.read_items().to_pylist()
    assert [item["item_index"] for item in items] == list(range(len(items)))
    assert [(item["domain"], item["item_id"]) for item in items] == sorted(
        (item["domain"], item["item_id"]) for item in items
    )
    assert corpus.read_titles() == [f"Item {item['item_id']}" for item in items]


def test_the_tables_are_plain_delta(corpus: Corpus) -> None:
    samples = DeltaTable(f"{corpus.uri}/samples").to_pyarrow_table()
    assert samples.num_rows == sum(
        s.rows for split in ("train", "validation", "test") for s in corpus.streams(split)
    )
    assert set(samples.column_names) == set(tables.SAMPLES_TABLE_SCHEMA.names)
    assert DeltaTable(f"{corpus.uri}/items").to_pyarrow_table().num_rows == len(
        corpus.read_titles()
    )
    assert DeltaTable(f"{corpus.uri}/samples").metadata().partition_columns == ["source", "split"]


def test_statistics(corpus: Corpus) -> None:
    shown = corpus.statistics()
    assert json.loads(Path(corpus.uri, "statistics.json").read_text()) == [shown]
    assert shown["version"] == 0
    assert shown["domains"]["A"] == {
        "users": 40,
        "items": 30,
        "interactions": 320,
        "sparsity": 1 - 320 / 1200,
        "samples": 200,
        "splits": {"train": 120, "validation": 40, "test": 40},
        "held_out": False,
    }
    assert shown["domains"]["C"]["held_out"]
    assert shown["mixed"]["samples"] == corpus.read_samples("mixed", "train").num_rows > 0
    assert shown["dropped"]["short_history"] == 3 * 3 * 40
    assert console_tables.statistics_table(shown).row_count == 4


def test_the_same_build_again_is_the_same_corpus_and_heals_statistics(
    root: Path, corpus: Corpus, tmp_path: Path
) -> None:
    place = tmp_path / "copy"
    shutil.copytree(corpus.uri, place)
    (place / "statistics.json").unlink()
    log = sorted((place / "samples" / "_delta_log").iterdir())
    moved = root.rename(root.with_name("moved"))
    try:
        said: list[str] = []
        again = build(settings(moved, distribute_above=10**12), 0, str(place), said.append)
    finally:
        moved.rename(root)
    assert again.version == 0
    assert "exists already" in said[0]
    assert sorted((place / "samples" / "_delta_log").iterdir()) == log
    assert (place / "statistics.json").read_text() == Path(
        corpus.uri, "statistics.json"
    ).read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"min_history": 2},
        {"domains": ("A",)},
        {"num_candidates": 6},
        {"users_together": True},
        {"prompt_injection": "neutralise"},
        {"prompt_injection": "drop"},
    ],
)
def test_another_corpus_at_the_uri_is_refused(
    root: Path, corpus: Corpus, change: dict[str, object]
) -> None:
    with pytest.raises(
        CorpusError,
        match="holds a corpus of other interactions, rules or seed; "
        "choose another place with --corpus",
    ):
        build(settings(root, **change), 0, corpus.uri, print)
    with pytest.raises(CorpusError, match="rules or seed"):
        build(settings(root), 1, corpus.uri, print)


def test_a_corpus_of_an_earlier_release_keeps_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of later releases change neither fingerprint nor rules while they are not used."""
    monkeypatch.setattr("corpus.fingerprints.file_digests", lambda *_: {})
    assert (
        fingerprint(settings("r", prompt_template="braces"), 0)
        == "eb071cb6d71dfa87d6d2cabe42320ebcf4b0a5d53e1f3d2d5210f736251c9c11"
    )
    keys = (
        "k_core",
        "max_history",
        "min_history",
        "mixed_min_domains",
        "mixed_min_target_domain",
        "num_candidates",
    )
    assert sorted(rules(settings("r", prompt_template="braces"), 0)) == [
        *(f"data.{key}" for key in keys),
        "rules",
        "seed",
    ]


def test_the_corpus_is_never_its_own_data_root(root: Path) -> None:
    with pytest.raises(CorpusError, match="the key corpus names the data root"):
        build(settings(root), 0, f"{root}/", print)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_recipe", [{}, {"domains": ("B",)}])
def test_a_build_killed_before_its_commit_shows_nothing_and_is_completed(
    root: Path,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_recipe: dict[str, object],
) -> None:
    """The killed build may have had another recipe; its leftovers do not show."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("corpus.local.sample_files.write_sample_files", killed)
        with pytest.raises(Killed):
            build(settings(root, **killed_recipe), 0, str(tmp_path), print)
    with pytest.raises(CorpusError, match="no corpus here"):
        Corpus.open(str(tmp_path))
    again = build(settings(root), 0, str(tmp_path), print)
    assert [(s.source, s.rows) for s in again.streams()] == [
        (s.source, s.rows) for s in corpus.streams()
    ]
    assert again.read_samples("mixed", "train").equals(corpus.read_samples("mixed", "train"))
    assert again.read_titles() == corpus.read_titles()


def test_a_commit_by_another_process_in_the_meantime_is_reported(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: object) -> UncommittedSamples:
        samples = write_sample_files(*arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr("corpus.local.sample_files.write_sample_files", write_sample_files)
            build(settings(root), 0, str(tmp_path), print)
        return samples

    monkeypatch.setattr("corpus.local.sample_files.write_sample_files", slow)
    with pytest.raises(CorpusError, match="another process made version 0 in the meantime"):
        build(settings(root), 0, str(tmp_path), print)
    assert Corpus.open(str(tmp_path)).version == 0


def test_a_missing_corpus_version_or_source_is_reported(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus here; build one with jobs/build_corpus\.py"):
        Corpus.open(str(tmp_path))
    with pytest.raises(CorpusError, match=r"no version 3, the corpus has versions 0\.\.0"):
        Corpus.open(corpus.uri, 3)
    with pytest.raises(
        CorpusError, match=r"has no source domain/Z; it has domain/A, domain/B, downstream/C, mixed"
    ):
        corpus.read_samples("domain/Z", "train")


@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_named(corpus: Corpus, tmp_path: Path, fault: str) -> None:
    shutil.copytree(corpus.uri, tmp_path / "copy")
    stream = Corpus.open(str(tmp_path / "copy")).streams()[0]
    file = Path(stream.files[0].uri)
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(content if fault == "flipped" else content[:-9])
    with pytest.raises(
        CorpusError,
        match=f"{file}: a file of the corpus is {'missing' if fault == 'missing' else 'damaged'}",
    ):
        read_rows(stream, 0, stream.rows)


def test_a_domain_with_an_empty_core_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"A: the 50-core of 320 interactions is empty; "
        r"the largest data\.k_core that leaves data is [1-8]$",
    ):
        build(settings(root, k_core=50), 0, str(tmp_path), print)


def test_too_few_items_for_negatives_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"A: 30 items, of which user u\d+ interacted with 8: 22 are left, "
        r"24 negatives are wanted; lower data\.num_cand",
    ):
        build(settings(root, num_candidates=25), 0, str(tmp_path), print)


def test_a_build_without_a_domain_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no domain"):
        build(settings(root, domains=()), 0, str(tmp_path), print)


def test_a_corpus_without_mixed_samples_is_reported(tmp_path: Path) -> None:
    world: dict[str, list[Row]] = {
        d: [(f"{d}-{user}", item, time) for user, item, time in rows]
        for d, rows in shop(DOMAINS).items()
    }
    said: list[str] = []
    corpus = build(
        settings(write_root(tmp_path / "root", world)), 0, str(tmp_path / "corpus"), said.append
    )
    assert corpus.statistics()["mixed"] == {"users": 0, "samples": 0}
    assert [s.source for s in corpus.streams()] == ["domain/A", "domain/B", "downstream/C"]
    assert "no mixed sample" in said[-1]
    assert "pre-train with schedule.mode domain_only" in said[-1]


def test_equal_titles_are_made_distinct_within_a_domain_and_counted(tmp_path: Path) -> None:
    root = write_root(
        tmp_path / "root", shop(DOMAINS), {"A00": "Soap", "A01": "soap", "B00": "Soap"}
    )
    corpus = build(settings(root), 0, str(tmp_path / "corpus"), print)
    titles = (
        pl.DataFrame(corpus.read_items())
        .filter(pl.col("item_id").is_in(["A00", "A01", "B00"]))
        .sort("item_id")["title"]
        .to_list()
    )
    assert titles == ["Soap", "soap (2)", "Soap"]
    assert corpus.statistics()["dropped"]["title_made_distinct"] == 1

"""Leak counts equal those of a slow implementation, and planted leaks are found."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.errors import CorpusError
from corpus.inspect.inspection import InspectionResult, Inspector, inspect_corpus
from corpus.inspect.leakage import ALL_CHECKS, LEAK_CHECKS
from corpus.sampling.schemas import SAMPLE_SCHEMA, STORED_INTERACTION_SCHEMA
from corpus.sampling.source import SPLITS, Source
from corpus.store import delta, scratch, stored_interactions
from corpus.store.tables import Corpus
from tests.unit.corpus.worlds import all_kept, two_versions

Dict = dict[str, Any]
Sample = tuple[str, str, Dict]
"""Source, split, row."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return two_versions(tmp_path_factory.mktemp("checked"))


def target_item(row: Dict) -> int:
    return int(row["candidates"][row["target"]])


def slow_leak_counts(
    interactions: Sequence[Dict], samples: Sequence[Sample], held_out: Sequence[str]
) -> dict[str, int]:
    """Counts all checks of `corpus.inspect.leakage` row by row, as they are described there."""
    counts = Counter(dict.fromkeys(ALL_CHECKS, 0))
    trained_items = {target_item(row) for _, split, row in samples if split == "train"}
    training_ids = {row["sample_id"] for _, split, row in samples if split == "train"}
    held_out_items = {row["item_index"] for row in interactions if row["domain"] in held_out}
    for row in interactions:
        test_times = [
            x["timestamp"]
            for x in interactions
            if (x["user_id"], x["domain"], x["split"]) == (row["user_id"], row["domain"], 2)
        ]
        counts["training_after_last_test"] += (
            row["split"] == 0 and bool(test_times) and row["timestamp"] > max(test_times)
        )
    earlier_ids: set[int] = set()
    for source, split, row in samples:
        of_user = [x for x in interactions if x["user_id"] == row["user_id"]]
        item = target_item(row)
        training_items = {x["item_index"] for x in of_user if x["split"] == 0}
        counts["sample_ids_twice"] += row["sample_id"] in earlier_ids
        earlier_ids.add(row["sample_id"])
        if split == "train" and not source.startswith("downstream"):
            counts["training_targets_held_out"] += any(
                x["split"] > 0 and (x["item_index"], x["timestamp"]) == (item, row["timestamp"])
                for x in of_user
            )
            only_held_out = {x["item_index"] for x in of_user} - training_items
            counts["history_items_held_out"] += sum(i in only_held_out for i in row["history"])
            counts["rows_of_held_out_domains"] += (row["domain"] in held_out) + sum(
                i in held_out_items for i in row["history"]
            )
        if split == "test":
            counts["test_samples_in_training"] += row["sample_id"] in training_ids
            counts["test_items_never_trained"] += item not in trained_items
            counts["test_items_bought_before"] += item in training_items
    return dict(counts)


def all_samples(corpus: Corpus) -> list[Sample]:
    sources = sorted(
        {(stream.source, stream.split) for split in SPLITS for stream in corpus.streams(split)}
    )
    return [
        (source, split, row)
        for source, split in sources
        for row in corpus.read_samples(source, split).to_pylist()
    ]


def test_a_sound_corpus_leaks_nothing(corpus: Corpus) -> None:
    counts = inspect_corpus(corpus).leak_counts
    assert {check: counts[check] for check in LEAK_CHECKS} == dict.fromkeys(LEAK_CHECKS, 0)
    assert counts["test_items_bought_before"] > 0
    assert counts == slow_leak_counts(all_kept(corpus).to_dicts(), all_samples(corpus), ["C"])


def test_the_number_of_partitions_changes_nothing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_partition = inspect_corpus(corpus)
    monkeypatch.setattr(stored_interactions, "TARGET_FILE_ROWS", 16)
    monkeypatch.setattr(scratch, "BATCH_ROWS", 5)
    assert stored_interactions.count_user_ranges(all_kept(corpus).height) == 64
    assert inspect_corpus(corpus) == in_one_partition


def plant_held_out_target(mixed: list[Dict], tests: list[Dict], _: list[Dict]) -> None:
    mixed[0] |= {
        key: tests[0][key] for key in ("user_id", "domain", "candidates", "target", "timestamp")
    }


def plant_held_out_history_item(mixed: list[Dict], tests: list[Dict], _: list[Dict]) -> None:
    row = next(
        r
        for r in tests
        if target_item(r)
        not in {i for x in mixed if x["user_id"] == r["user_id"] for i in x["history"]}
    )
    mixed[0] |= {"user_id": row["user_id"], "history": [target_item(row)] * 3}


def plant_item_of_held_out_domain(mixed: list[Dict], _: list[Dict], held_out: list[Dict]) -> None:
    mixed[0] |= {"history": held_out[0]["history"]}


def plant_repeated_id(mixed: list[Dict], *_: list[Dict]) -> None:
    mixed[0] |= {"sample_id": mixed[1]["sample_id"]}


def plant_id_of_training_in_test(mixed: list[Dict], tests: list[Dict], _: list[Dict]) -> None:
    tests[0] |= {"sample_id": mixed[0]["sample_id"]}


def plant_untrained_item(_: list[Dict], tests: list[Dict], *__: list[Dict]) -> None:
    tests[0] |= {"candidates": [10_000] * len(tests[0]["candidates"])}


@pytest.mark.parametrize(
    ("plant", "check", "extra"),
    [
        (plant_held_out_target, "training_targets_held_out", 1),
        (plant_held_out_history_item, "history_items_held_out", 3),
        (plant_item_of_held_out_domain, "rows_of_held_out_domains", 4),
        (plant_repeated_id, "sample_ids_twice", 1),
        (plant_id_of_training_in_test, "test_samples_in_training", 1),
        (plant_untrained_item, "test_items_never_trained", 1),
    ],
)
def test_leaks_planted_in_samples_are_found(
    corpus: Corpus, tmp_path: Path, plant: Callable[..., None], check: str, extra: int
) -> None:
    """A row is changed, and its file is overwritten."""
    leaking = copy_corpus(corpus, tmp_path)
    splits = {"mixed": "train", "domain/A": "test", "downstream/C": "test"}
    files = [
        next(s.files[0].uri for s in leaking.streams(split) if s.source == source)
        for source, split in splits.items()
    ]
    rows_by_file = [delta.open_parquet(file).read().to_pylist() for file in files]
    plant(*rows_by_file)
    for file, rows in zip(files, rows_by_file, strict=True):
        pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), file)
    counts = inspect_corpus(leaking).leak_counts
    assert counts[check] == inspect_corpus(corpus).leak_counts[check] + extra
    assert counts == slow_leak_counts(all_kept(leaking).to_dicts(), all_samples(leaking), ["C"])


def test_a_training_interaction_after_the_last_test_interaction_is_found(
    corpus: Corpus, tmp_path: Path
) -> None:
    """A training interaction is moved to a day after all others of its user."""
    changed = copy_corpus(corpus, tmp_path)
    file = stored_interactions.list_files(changed)[0].uri
    rows = pl.DataFrame(delta.open_parquet(file).read()).with_row_index()
    later = (pl.col("index") == rows.filter(split=0)["index"][0]).cast(pl.Int64) * 86_400
    pq.write_table(
        rows.with_columns(pl.col("timestamp") + later)
        .drop("index")
        .to_arrow()
        .cast(STORED_INTERACTION_SCHEMA),
        file,
    )
    assert inspect_corpus(changed).leak_counts["training_after_last_test"] == 1


def copy_corpus(corpus: Corpus, folder: Path) -> Corpus:
    shutil.copytree(corpus.uri, folder / "copy")
    return Corpus.open(str(folder / "copy"))


SOURCES = ("mixed", "domain/A", "domain/B", "downstream/C")


@st.composite
def interactions_and_samples(draw: st.DrawFn) -> tuple[list[Dict], list[Sample]]:
    """Random interactions, and random samples that do not follow from them.

    Items 0 to 5 are of domain A, 6 to 11 of B, 12 to 17 of C.
    """
    users = st.sampled_from([f"u{n}" for n in range(6)])
    items = st.integers(0, 17)
    times = st.integers(0, 3)
    rows = draw(
        st.lists(
            st.tuples(users, items, times, st.integers(0, 2)),
            max_size=60,
            unique_by=lambda row: row[:3],
        )
    )
    interactions = [
        {"user_id": u, "domain": "ABC"[i // 6], "item_index": i, "timestamp": t, "split": s}
        for u, i, t, s in rows
    ]
    sample = st.fixed_dictionaries(
        {
            "sample_id": st.integers(-9, 9),
            "domain": st.sampled_from("ABC"),
            "user_id": users,
            "history": st.lists(items, min_size=1, max_size=4),
            "candidates": st.lists(items, min_size=2, max_size=2),
            "target": st.integers(0, 1),
            "timestamp": times,
        }
    )
    return interactions, draw(
        st.lists(st.tuples(st.sampled_from(SOURCES), st.sampled_from(SPLITS), sample), max_size=30)
    )


def inspect_row_by_row(
    interactions: Sequence[Dict], samples: Sequence[Sample], num_partitions: int
) -> InspectionResult:
    """Adds rows to an inspector one at a time."""
    held_out_items = np.unique([row["item_index"] for row in interactions if row["domain"] == "C"])
    with scratch.open_scratch_file() as scratch_file:
        inspector = Inspector(scratch_file, num_partitions, num_partitions, {"C": held_out_items})
        for row in interactions:
            inspector.add_interactions(pl.DataFrame([row], schema_overrides={"split": pl.Int8}))
        for source, split, row in samples:
            inspector.add_samples(
                Source.parse(source),
                split,
                pl.DataFrame(pa.Table.from_pylist([row], schema=SAMPLE_SCHEMA)),
            )
        return inspector.result()


@given(interactions_and_samples(), st.sampled_from([2, 16]))
@hypothesis_settings(max_examples=40, deadline=None)
def test_leak_counts_equal_those_of_the_slow_implementation(
    rows: tuple[list[Dict], list[Sample]], num_partitions: int
) -> None:
    result = inspect_row_by_row(*rows, num_partitions)
    assert result.leak_counts == slow_leak_counts(*rows, ["C"])
    assert result == inspect_row_by_row(*rows, 1)


@pytest.mark.parametrize(("kind", "column"), [("interactions", 4), ("samples", 0)])
def test_a_damaged_file_is_named(corpus: Corpus, tmp_path: Path, kind: str, column: int) -> None:
    """A bit is flipped in item_index, or in sample_id."""
    changed = copy_corpus(corpus, tmp_path)
    file = Path(
        (
            stored_interactions.list_files(changed)
            if kind == "interactions"
            else changed.streams("validation")[0].files
        )[0].uri
    )
    pages = pq.read_metadata(file).row_group(0).column(column)
    content = bytearray(file.read_bytes())
    content[pages.data_page_offset + pages.total_compressed_size // 4] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=f"{file.name}: a file of the corpus is damaged"):
        inspect_corpus(changed)

"""The check for leakage counts what a slow reading counts, in any number of parts, and finds what is planted."""

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
from corpus.sampling.samples import SAMPLE_SCHEMA, STORED_INTERACTION_SCHEMA
from corpus.sampling.sequences import SPLITS
from corpus.sampling.source import Source
from corpus.store import delta, scratch, stored_interactions
from corpus.store.tables import Corpus
from tests.unit.corpus.worlds import all_kept, two_versions

Dict = dict[str, Any]
Sample = tuple[str, str, Dict]
"""Source, split, row."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return two_versions(tmp_path_factory.mktemp("checked"))


def target(row: Dict) -> int:
    return int(row["candidates"][row["target"]])


def read_slowly(
    known: Sequence[Dict], samples: Sequence[Sample], held_out: Sequence[str]
) -> dict[str, int]:
    """The numbers of `corpus.inspect.leakage` as their definitions say them, one row after another."""
    found = Counter(dict.fromkeys(ALL_CHECKS, 0))
    trained = {target(row) for _, split, row in samples if split == "train"}
    of_training = {row["sample_id"] for _, split, row in samples if split == "train"}
    of_held_out = {row["item_index"] for row in known if row["domain"] in held_out}
    for row in known:
        tests = [
            x["timestamp"]
            for x in known
            if (x["user_id"], x["domain"], x["split"]) == (row["user_id"], row["domain"], 2)
        ]
        found["training_after_last_test"] += (
            row["split"] == 0 and bool(tests) and row["timestamp"] > max(tests)
        )
    seen: set[int] = set()
    for source, split, row in samples:
        own = [x for x in known if x["user_id"] == row["user_id"]]
        item, in_training = target(row), {x["item_index"] for x in own if x["split"] == 0}
        found["sample_ids_twice"] += row["sample_id"] in seen
        seen.add(row["sample_id"])
        if split == "train" and not source.startswith("downstream"):
            found["training_targets_held_out"] += any(
                x["split"] > 0 and (x["item_index"], x["timestamp"]) == (item, row["timestamp"])
                for x in own
            )
            out = {x["item_index"] for x in own} - in_training
            found["history_items_held_out"] += sum(i in out for i in row["history"])
            found["rows_of_held_out_domains"] += (row["domain"] in held_out) + sum(
                i in of_held_out for i in row["history"]
            )
        if split == "test":
            found["test_samples_in_training"] += row["sample_id"] in of_training
            found["test_items_never_trained"] += item not in trained
            found["test_items_bought_before"] += item in in_training
    return dict(found)


def all_samples(corpus: Corpus) -> list[Sample]:
    sources = sorted(
        {(stream.source, stream.split) for split in SPLITS for stream in corpus.streams(split)}
    )
    return [(*of, row) for of in sources for row in corpus.read_samples(*of).to_pylist()]


def test_a_sound_corpus_leaks_nothing(corpus: Corpus) -> None:
    found = inspect_corpus(corpus).leak_counts
    assert {name: found[name] for name in LEAK_CHECKS} == dict.fromkeys(LEAK_CHECKS, 0)
    assert found["test_items_bought_before"] > 0
    assert found == read_slowly(all_kept(corpus).to_dicts(), all_samples(corpus), ["C"])


def test_the_number_of_parts_changes_nothing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = inspect_corpus(corpus)
    monkeypatch.setattr(stored_interactions, "TARGET_FILE_ROWS", 16)
    monkeypatch.setattr(scratch, "BATCH_ROWS", 5)
    assert stored_interactions.user_range_count(all_kept(corpus).height) == 64
    assert inspect_corpus(corpus) == at_once


def a_target_held_out(mixed: list[Dict], tests: list[Dict], _: list[Dict]) -> None:
    mixed[0] |= {
        key: tests[0][key] for key in ("user_id", "domain", "candidates", "target", "timestamp")
    }


def an_item_held_out(mixed: list[Dict], tests: list[Dict], _: list[Dict]) -> None:
    row = next(
        r
        for r in tests
        if target(r) not in {i for x in mixed if x["user_id"] == r["user_id"] for i in x["history"]}
    )
    mixed[0] |= {"user_id": row["user_id"], "history": [target(row)] * 3}


def of_a_domain_held_out(mixed: list[Dict], _: list[Dict], held_out: list[Dict]) -> None:
    mixed[0] |= {"history": held_out[0]["history"]}


def one_id_for_two(mixed: list[Dict], *_: list[Dict]) -> None:
    mixed[0] |= {"sample_id": mixed[1]["sample_id"]}


def one_id_of_both(mixed: list[Dict], tests: list[Dict], _: list[Dict]) -> None:
    tests[0] |= {"sample_id": mixed[0]["sample_id"]}


def an_unknown_item(_: list[Dict], tests: list[Dict], *__: list[Dict]) -> None:
    tests[0] |= {"candidates": [10_000] * len(tests[0]["candidates"])}


@pytest.mark.parametrize(
    ("spoil", "number", "more"),
    [
        (a_target_held_out, "training_targets_held_out", 1),
        (an_item_held_out, "history_items_held_out", 3),
        (of_a_domain_held_out, "rows_of_held_out_domains", 4),
        (one_id_for_two, "sample_ids_twice", 1),
        (one_id_of_both, "test_samples_in_training", 1),
        (an_unknown_item, "test_items_never_trained", 1),
    ],
)
def test_what_is_planted_in_samples_is_found(
    corpus: Corpus, tmp_path: Path, spoil: Callable[..., None], number: str, more: int
) -> None:
    """A row is spoilt in one way, and its file written over."""
    spoilt = copied(corpus, tmp_path)
    of = {"mixed": "train", "domain/A": "test", "downstream/C": "test"}
    files = [
        next(s.files[0].uri for s in spoilt.streams(split) if s.source == source)
        for source, split in of.items()
    ]
    rows = [delta.open_parquet(file).read().to_pylist() for file in files]
    spoil(*rows)
    for file, found in zip(files, rows, strict=True):
        pq.write_table(pa.Table.from_pylist(found, schema=SAMPLE_SCHEMA), file)
    leaks = inspect_corpus(spoilt).leak_counts
    assert leaks[number] == inspect_corpus(corpus).leak_counts[number] + more
    assert leaks == read_slowly(all_kept(spoilt).to_dicts(), all_samples(spoilt), ["C"])


def test_training_later_than_the_test_is_found(corpus: Corpus, tmp_path: Path) -> None:
    """A training interaction is put a day after all others of its user."""
    spoilt = copied(corpus, tmp_path)
    file = stored_interactions.list_files(spoilt)[0].uri
    rows = pl.DataFrame(delta.open_parquet(file).read()).with_row_index()
    later = (pl.col("index") == rows.filter(split=0)["index"][0]).cast(pl.Int64) * 86_400
    pq.write_table(
        rows.with_columns(pl.col("timestamp") + later)
        .drop("index")
        .to_arrow()
        .cast(STORED_INTERACTION_SCHEMA),
        file,
    )
    assert inspect_corpus(spoilt).leak_counts["training_after_last_test"] == 1


def copied(corpus: Corpus, place: Path) -> Corpus:
    shutil.copytree(corpus.uri, place / "spoilt")
    return Corpus.open(str(place / "spoilt"))


SOURCES = ("mixed", "domain/A", "domain/B", "downstream/C")


@st.composite
def anything(draw: st.DrawFn) -> tuple[list[Dict], list[Sample]]:
    """Interactions and samples that nobody made of them: items 0 to 5 are of A, 6 to 11 of B, 12 to 17 of C."""
    users, items, times = (
        st.sampled_from([f"u{n}" for n in range(6)]),
        st.integers(0, 17),
        st.integers(0, 3),
    )
    rows = draw(
        st.lists(
            st.tuples(users, items, times, st.integers(0, 2)),
            max_size=60,
            unique_by=lambda row: row[:3],
        )
    )
    known = [
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
    return known, draw(
        st.lists(st.tuples(st.sampled_from(SOURCES), st.sampled_from(SPLITS), sample), max_size=30)
    )


def walked(known: Sequence[Dict], samples: Sequence[Sample], parts: int) -> InspectionResult:
    """What a walk over rows finds that come one by one."""
    with scratch.open_scratch_file() as aside:
        walk = Inspector(
            aside,
            parts,
            parts,
            {"C": np.unique([row["item_index"] for row in known if row["domain"] == "C"])},
        )
        for row in known:
            walk.add_interactions(pl.DataFrame([row], schema_overrides={"split": pl.Int8}))
        for source, split, row in samples:
            walk.add_samples(
                Source.parse(source),
                split,
                pl.DataFrame(pa.Table.from_pylist([row], schema=SAMPLE_SCHEMA)),
            )
        return walk.result()


@given(anything(), st.sampled_from([2, 16]))
@hypothesis_settings(max_examples=40, deadline=None)
def test_leaks_are_what_a_slow_reading_finds(
    rows: tuple[list[Dict], list[Sample]], parts: int
) -> None:
    found = walked(*rows, parts)
    assert found.leak_counts == read_slowly(*rows, ["C"])
    assert found == walked(*rows, 1)


@pytest.mark.parametrize(("kind", "column"), [("interactions", 4), ("samples", 0)])
def test_a_damaged_file_is_named(corpus: Corpus, tmp_path: Path, kind: str, column: int) -> None:
    """A bit is turned in item_index, or in sample_id."""
    spoilt = copied(corpus, tmp_path)
    file = Path(
        (
            stored_interactions.list_files(spoilt)
            if kind == "interactions"
            else spoilt.streams("validation")[0].files
        )[0].uri
    )
    pages = pq.read_metadata(file).row_group(0).column(column)
    content = bytearray(file.read_bytes())
    content[pages.data_page_offset + pages.total_compressed_size // 4] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=f"{file.name}: a file of the corpus is damaged"):
        inspect_corpus(spoilt)

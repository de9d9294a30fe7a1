"""Rows that cannot be used are told by file, reason and row, whatever the blocks in which their files were read."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from corpus.build import build
from corpus.ingest import quarantine
from corpus.ingest.quarantine import MAX_EXAMPLES, QuarantinedRows
from corpus.inspect import console_tables, page
from corpus.inspect.inspection import inspect_corpus
from tests.unit.corpus.worlds import settings, shop, write_root

REASONS = ("negative", "odd")
files = st.lists(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=20), min_size=1, max_size=4
)
"""Rows of each file: a number, and whether it could not be read."""


def bad_of(names: Mapping[str, Sequence[tuple[int, bool]]]) -> tuple[QuarantinedRows, ...]:
    rows = [row for of in names.values() for row in of]
    frame = pl.DataFrame({"n": [n for n, _ in rows]}, schema={"n": pl.Int64})
    faults = {"negative": pl.col("n") < 0, "odd": pl.col("n") % 2 == 1}
    fault = quarantine.first_fault_codes(frame, faults, np.array([bad for _, bad in rows], bool))
    return quarantine.collect_faulty_rows(
        "A",
        {name: len(of) for name, of in names.items()},
        faults,
        fault,
        lambda row: {"n": rows[row][0]},
    )


@given(files, st.integers(1, 7))
def test_the_same_in_any_blocks_and_as_a_loop_says(
    found: list[list[tuple[int, bool]]], block: int
) -> None:
    names = {f"f{number}": of for number, of in enumerate(found)}
    whole = bad_of(names)
    blocks = [
        (name, of[start : start + block])
        for name, of in names.items()
        for start in range(0, len(of), block)
    ]
    assert set(
        map(
            str, quarantine.merge_blocks((bad_of({name: of}), name, len(of)) for name, of in blocks)
        )
    ) == set(map(str, whole))
    for of in whole:
        reason = [
            ("malformed_line" if bad else "negative" if n < 0 else "odd" if n % 2 else None)
            for n, bad in names[of.file]
        ]
        rows = [row for row, why in enumerate(reason, start=1) if why == of.reason]
        assert of.rows == len(rows)
        assert [example["row"] for example in of.examples] == rows[:MAX_EXAMPLES]
        assert [example["n"] for example in of.examples] == [
            names[of.file][row - 1][0] for row in rows[:MAX_EXAMPLES]
        ]
    assert quarantine.count_by_reason(whole).total() == sum(
        bad or n < 0 or n % 2 == 1 for of in found for n, bad in of
    )


def test_a_corpus_tells_what_could_not_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = shop(("A", "B", "C"))
    root = write_root(tmp_path / "root", world)
    rows = pl.read_parquet(root / "interactions" / "A.parquet")
    nasty = pl.DataFrame(
        {"user_id": ["<b>\u2028\x85", None], "item_id": ["A00", "A01"], "timestamp": [-7, 1]},
        schema=rows.schema,
    )
    pl.concat([rows, nasty]).write_parquet(root / "interactions" / "A.parquet")
    said: list[str] = []
    corpus = build(settings(root), 0, str(tmp_path / "corpus"), said.append)
    name = corpus.commits[0].metadata["quarantine"]
    assert f"first of each: {corpus.uri}/quarantine/{name}" in said[-1]
    told = [
        json.loads(line)
        for line in Path(corpus.uri, "quarantine", name).read_text().rstrip("\n").split("\n")
    ]
    assert told == [
        {
            "domain": "A",
            "file": "interactions/A.parquet",
            "reason": reason,
            "rows": 1,
            "examples": [example],
        }
        for reason, example in (
            ("no_user_id", {"row": 322, "user_id": None, "item_id": "A01", "timestamp": 1}),
            (
                "timestamp_before_1970",
                {"row": 321, "user_id": "<b>\u2028\x85", "item_id": "A00", "timestamp": -7},
            ),
        )
    ]
    monkeypatch.chdir(tmp_path)
    again = build(settings("root"), 0, "again", print)  # where the data root lies changes nothing
    assert again.commits[0].metadata["quarantine"] == name
    assert [(of.domain, of.rows) for of in quarantine.read(corpus.uri, name)] == [
        ("A", 1),
        ("A", 1),
    ]
    shown = page.render_page(corpus, inspect_corpus(corpus))
    assert (
        "row 321: user_id &#39;&lt;b&gt;\\u2028\\x85&#39;, item_id &#39;A00&#39;, timestamp -7"
        in shown
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*console_tables.corpus_tables(corpus))
    text = " ".join(console.export_text().split())
    assert "no_user_id 1 row 322:" in text
    assert "user_id missing," in text


def test_a_sound_corpus_has_no_such_file(tmp_path: Path) -> None:
    corpus = build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C")))),
        0,
        str(tmp_path / "corpus"),
        print,
    )
    assert corpus.commits[0].metadata["quarantine"] is None
    assert not Path(corpus.uri, "quarantine").exists()

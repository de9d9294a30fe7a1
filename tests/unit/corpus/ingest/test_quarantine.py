"""Unusable rows are recorded by file, reason and row, whatever blocks the files are read in."""

import io
import json
import shutil
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

files = st.lists(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=20), min_size=1, max_size=4
)
"""The rows of each file: a number, and whether the row is malformed."""


def quarantine_rows(
    rows_by_file: Mapping[str, Sequence[tuple[int, bool]]],
) -> tuple[QuarantinedRows, ...]:
    """Quarantines malformed rows and those whose number is negative or odd."""
    rows = [row for file_rows in rows_by_file.values() for row in file_rows]
    frame = pl.DataFrame({"n": [n for n, _ in rows]}, schema={"n": pl.Int64})
    faults = {"negative": pl.col("n") < 0, "odd": pl.col("n") % 2 == 1}
    malformed = np.array([is_malformed for _, is_malformed in rows], bool)
    return quarantine.collect_faulty_rows(
        "A",
        {file: len(file_rows) for file, file_rows in rows_by_file.items()},
        faults,
        quarantine.first_fault_codes(frame, faults, malformed),
        lambda row: {"n": rows[row][0]},
    )


@given(files, st.integers(1, 7))
def test_blocks_do_not_matter_and_a_plain_loop_agrees(
    all_rows: list[list[tuple[int, bool]]], block_rows: int
) -> None:
    rows_by_file = {f"f{number}": file_rows for number, file_rows in enumerate(all_rows)}
    quarantined = quarantine_rows(rows_by_file)
    blocks = [
        (file, file_rows[start : start + block_rows])
        for file, file_rows in rows_by_file.items()
        for start in range(0, len(file_rows), block_rows)
    ]
    merged = quarantine.merge_blocks(
        (quarantine_rows({file: rows}), file, len(rows)) for file, rows in blocks
    )
    assert set(map(str, merged)) == set(map(str, quarantined))
    for entry in quarantined:
        reasons = [
            "malformed_line" if malformed else "negative" if n < 0 else "odd" if n % 2 else None
            for n, malformed in rows_by_file[entry.file]
        ]
        rows = [row for row, reason in enumerate(reasons, start=1) if reason == entry.reason]
        assert entry.rows == len(rows)
        assert [example["row"] for example in entry.examples] == rows[:MAX_EXAMPLES]
        assert [example["n"] for example in entry.examples] == [
            rows_by_file[entry.file][row - 1][0] for row in rows[:MAX_EXAMPLES]
        ]
    assert quarantine.count_by_reason(quarantined).total() == sum(
        malformed or n < 0 or n % 2 == 1 for file_rows in all_rows for n, malformed in file_rows
    )


def test_a_corpus_records_and_shows_its_quarantined_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = shop(("A", "B", "C"))
    root = write_root(tmp_path / "root", world)
    rows = pl.read_parquet(root / "interactions" / "A.parquet")
    unusable = pl.DataFrame(
        {"user_id": ["<b>\u2028\x85", None], "item_id": ["A00", "A01"], "timestamp": [-7, 1]},
        schema=rows.schema,
    )
    pl.concat([rows, unusable]).write_parquet(root / "interactions" / "A.parquet")
    said: list[str] = []
    corpus = build(settings(root), 0, str(tmp_path / "corpus"), said.append)
    name = corpus.commits[0].metadata["quarantine"]
    assert f"first of each: {corpus.uri}/quarantine/{name}" in said[-1]
    entries = [
        json.loads(line)
        for line in Path(corpus.uri, "quarantine", name).read_text().rstrip("\n").split("\n")
    ]
    assert entries == [
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
    # The path of the data root changes nothing.
    again = build(settings("root"), 0, "again", print)
    assert again.commits[0].metadata["quarantine"] == name
    entries_read = quarantine.read(corpus.uri, name) or ()
    assert [(entry.domain, entry.rows) for entry in entries_read] == [("A", 1), ("A", 1)]
    html = page.render_page(corpus, inspect_corpus(corpus))
    assert (
        "row 321: user_id &#39;&lt;b&gt;\\u2028\\x85&#39;, item_id &#39;A00&#39;, timestamp -7"
        in html
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*console_tables.corpus_tables(corpus))
    text = " ".join(console.export_text().split())
    assert "no_user_id 1 row 322:" in text
    assert "user_id missing," in text

    shutil.rmtree(Path(corpus.uri, "quarantine"))
    missing = "no record of version 0: the folder quarantine lacks it"
    html = page.render_page(corpus, inspect_corpus(corpus))
    assert f"{missing}." in html
    assert "no_user_id" not in html.partition("Rows that cannot be used")[2]
    console.print(*console_tables.corpus_tables(corpus))
    assert missing in " ".join(console.export_text().split())


def test_a_corpus_without_unusable_rows_has_no_quarantine(tmp_path: Path) -> None:
    corpus = build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C")))),
        0,
        str(tmp_path / "corpus"),
        print,
    )
    assert corpus.commits[0].metadata["quarantine"] is None
    assert not Path(corpus.uri, "quarantine").exists()

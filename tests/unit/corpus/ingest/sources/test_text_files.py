"""Text files give the same rows whatever the size of blocks and splits, in constant memory."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.errors import DataError, UserError
from corpus.ingest.sources import file_splits, reader, text_files
from corpus.ingest.sources.file_splits import FileSplit

COLUMNS = {"user_id": "u", "item_id": "i", "timestamp": "t"}
MOVIELENS_COLUMNS = {name: name for name in ("user_id", "item_id", "timestamp")}

text = st.text(st.sampled_from([*"ab 7,\"':{}", "\u2028", "\x85", "é", "日"]), max_size=6)
rows = st.lists(st.tuples(text, text, st.integers(-1, 10**15), st.booleans()), max_size=30)
"""User, item, time, and whether the row is written malformed."""

Rows = Sequence[tuple[str, str, int, bool]]


def as_json(rows: Rows) -> bytes:
    return "".join(
        '{"u": "cut\n'
        if malformed
        else json.dumps({"u": u, "i": i, "t": t}, ensure_ascii=False) + "\n"
        for u, i, t, malformed in rows
    ).encode()


def as_plain_csv(rows: Rows) -> bytes:
    """Quotes only where necessary, ends lines with CRLF, and adds empty lines."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(["t", "other", "u", "i"])
    for number, (u, i, t, malformed) in enumerate(rows):
        writer.writerow([t, u] if malformed else [t, "a", u, i])
        sink.write("\r\n" * (number % 3 == 0))
    return sink.getvalue().encode()


def as_csv(rows: Rows) -> bytes:
    """Quotes every field, and puts a line break into one."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["t", "other", "u", "i"])
    for u, i, t, malformed in rows:
        writer.writerow([t, u] if malformed else [t, "a\nb", u, i])
    return sink.getvalue().encode()


def as_dat(rows: Rows) -> bytes:
    def plain(value: str) -> str:
        return value.encode("latin-1", "replace").decode("latin-1").replace(":", ";")

    return "".join(
        f"{plain(u)}::{plain(i)}\r\n" if malformed else f"{plain(u)}::{plain(i)}::3::{t}\n"
        for u, i, t, malformed in rows
    ).encode("latin-1")


def read(
    splits: Sequence[FileSplit], columns: dict[str, str]
) -> tuple[list[tuple[object, ...]], list[bool]]:
    """All rows of some splits, and which of them are malformed."""
    all_rows = []
    malformed = []
    for split in splits:
        for block in reader.read_blocks(split, columns, 1):
            all_rows += pl.DataFrame(block.table).rows()
            malformed += (
                np.zeros(block.table.num_rows, bool) if block.malformed is None else block.malformed
            ).tolist()
    return all_rows, malformed


@pytest.mark.parametrize(
    ("name", "dump"),
    [
        ("a.json", as_json),
        ("a.json.gz", as_json),
        ("a.csv", as_csv),
        ("a.csv.gz", as_csv),
        ("b.csv", as_plain_csv),
        ("ratings.dat", as_dat),
    ],
)
@given(written=rows, block_bytes=st.integers(120, 400), split_bytes=st.integers(1, 200))
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_read_once_and_in_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dump: Callable[..., bytes],
    written: list[tuple[str, str, int, bool]],
    block_bytes: int,
    split_bytes: int,
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(file_splits, "BYTES_PER_SPLIT", split_bytes)
    content = dump(written)
    if not content:
        return
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    columns = MOVIELENS_COLUMNS if name.endswith(".dat") else COLUMNS
    splits = file_splits.split_file(str(path))
    is_split = path.suffix not in (".gz", ".csv")
    assert len(splits) == (-(-len(content) // split_bytes) if is_split else 1)
    read_rows, malformed = read(splits, columns)
    assert malformed == [bad for *_, bad in written]
    if not name.endswith(".dat"):
        assert read_rows == [(None, None, None) if bad else (u, i, t) for u, i, t, bad in written]
    else:
        assert [row[2] for row in read_rows] == [None if bad else t for *_, t, bad in written]


VALUES = [
    "1500000000.0",
    '"x"',
    "7",
    "true",
    "null",
    '["a", 1]',
    '{"k": "v", "a": 1}',
    "1.50",
    "1e3",
    '"\\ud800"',
    "12345678901234567890",
]


@given(
    st.lists(st.tuples(st.sampled_from(VALUES), st.sampled_from(VALUES)), min_size=1, max_size=12),
    st.integers(0, 12),
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_malformed_line_changes_no_other(
    tmp_path: Path, values: list[tuple[str, str]], position: int
) -> None:
    """Polars reads the clean file directly; the other one is rewritten as strict JSON first."""
    lines = [
        f'{{"u": {u}, "i": {i}, "t": {u}, "u": "again"}}'
        for u, i in values
        if "\\ud800" not in (u + i)
    ]
    with_malformed = [*lines[:position], '{{"a": 1}}', *lines[position:]]
    clean = tmp_path / "clean.json"
    clean.write_text("".join(f"{line}\n" for line in lines))
    damaged = tmp_path / "damaged.json"
    damaged.write_text("".join(f"{line}\n" for line in with_malformed))
    if lines:
        clean_rows, _ = read([FileSplit(str(clean))], COLUMNS)
        damaged_rows, malformed = read([FileSplit(str(damaged))], COLUMNS)
        assert sum(malformed) == 1
        good_rows = [row for row, bad in zip(damaged_rows, malformed, strict=True) if not bad]
        assert good_rows == clean_rows


def test_an_unclosed_quote_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("u,i,t\na,b,1\n" + '"open,b,2\n' + "a,b,3\n" * 2_000)
    with pytest.raises(DataError, match=r"a\.csv: row 2 has a quote that is not closed"):
        read([FileSplit(str(path))], COLUMNS)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 3_000)
    with pytest.raises(DataError, match=r"a\.csv: .*a quote that is not closed; write it again"):
        read([FileSplit(str(path))], COLUMNS)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "its first line is empty"),
        ("u,i,t\rx,y,1\r", "no header of a csv file"),
        ("x" * 200_000, "no header of a csv file"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: str, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"{header}\nx,y,1\n".encode())
    with pytest.raises(DataError, match=rf"a\.csv: .*{reason}"):
        read([FileSplit(str(path))], COLUMNS)


def test_two_of_our_columns_may_be_one_column_of_the_file(tmp_path: Path) -> None:
    for name, content in (("a.csv", "i,t\nx,3\n"), ("a.json", '{"i": "x", "t": 3}\n')):
        (tmp_path / name).write_text(content)
        assert read(
            [FileSplit(str(tmp_path / name))], {"user_id": "i", "item_id": "i", "timestamp": "t"}
        )[0] == [("x", "x", 3)]


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json: no such file any more"):
        read([FileSplit(str(tmp_path / "a.json"))], COLUMNS)
    for name in ("b.json", "b.parquet"):
        (tmp_path / name / "inside").mkdir(parents=True)
        with pytest.raises(
            UserError, match=rf"{name}: a (folder|directory), where a file was expected"
        ):
            read([FileSplit(str(tmp_path / name))], COLUMNS)


def test_a_csv_with_too_many_malformed_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_MAX_CONSECUTIVE_MALFORMED", 1_000)
    path = tmp_path / "a.csv"
    path.write_text("u,i,t\n" + "a,b,1\n" + "cut,\n" * 20_000)
    with pytest.raises(
        DataError,
        match=r"a\.csv: not a csv file in UTF-8 with one header "
        r"\(.*Row #1002: Expected 3 columns, got 2",
    ):
        read([FileSplit(str(path))], COLUMNS)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MiB of text are read from 0.1 MiB of gzip in less than 4 MiB."""
    path = tmp_path / "a.json.gz"
    path.write_bytes(
        gzip.compress(
            (json.dumps({"u": "user", "i": "item", "t": 1, "text": "x" * 10_000}) + "\n").encode()
            * 2_000
        )
    )
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 17)
    tracemalloc.start()
    num_rows = sum(
        block.table.num_rows for block in reader.read_blocks(FileSplit(str(path)), COLUMNS, 1)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 2_000
    assert peak < 4 << 20


def test_a_line_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 20)
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b'{"u": 1}, ' * 300_000)
    with pytest.raises(
        DataError, match=r"a\.json: a line of more than 1 MiB; this format has a row on every line"
    ):
        list(reader.read_blocks(FileSplit(str(path)), COLUMNS, 1))


def test_a_header_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf"u",i,t\r\nx,y,3\r\n')
    assert read([FileSplit(str(path))], COLUMNS) == ([("x", "y", 3)], [False])


def test_times_that_cannot_be_read_are_recorded_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("u,i,t\na,b,1\na,b,May 2014\na,b,\n")
    (block, *_) = reader.read_blocks(FileSplit(str(path)), COLUMNS, 1)
    assert block.table["timestamp"].to_pylist() == [1, None, None]
    assert block.unparsed_text[1] == "May 2014"

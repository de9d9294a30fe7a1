"""Files of text a block at a time: whatever the size of a block or a piece, the rows are the same, and memory does not grow with the file."""

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
MOVIES = {name: name for name in ("user_id", "item_id", "timestamp")}

text = st.text(st.sampled_from([*"ab 7,\"':{}", "\u2028", "\x85", "é", "日"]), max_size=6)
rows = st.lists(st.tuples(text, text, st.integers(-1, 10**15), st.booleans()), max_size=30)
"""user, item, time, and whether the row cannot be read."""


def as_json(found: Sequence[tuple[str, str, int, bool]]) -> bytes:
    return "".join(
        '{"u": "cut\n' if bad else json.dumps({"u": u, "i": i, "t": t}, ensure_ascii=False) + "\n"
        for u, i, t, bad in found
    ).encode()


def as_plain_csv(found: Sequence[tuple[str, str, int, bool]]) -> bytes:
    """Quoted only where it has to be, with other ends of lines, and empty lines."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(["t", "other", "u", "i"])
    for number, (u, i, t, bad) in enumerate(found):
        writer.writerow([t, u] if bad else [t, "a", u, i])
        sink.write("\r\n" * (number % 3 == 0))
    return sink.getvalue().encode()


def as_csv(found: Sequence[tuple[str, str, int, bool]]) -> bytes:
    """Fields may hold lines here."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["t", "other", "u", "i"])
    for u, i, t, bad in found:
        writer.writerow([t, u] if bad else [t, "a\nb", u, i])
    return sink.getvalue().encode()


def as_dat(found: Sequence[tuple[str, str, int, bool]]) -> bytes:
    def plain(value: str) -> str:
        return value.encode("latin-1", "replace").decode("latin-1").replace(":", ";")

    return "".join(
        f"{plain(u)}::{plain(i)}\r\n" if bad else f"{plain(u)}::{plain(i)}::3::{t}\n"
        for u, i, t, bad in found
    ).encode("latin-1")


def read(
    cut: Sequence[FileSplit], columns: dict[str, str]
) -> tuple[list[tuple[object, ...]], list[bool]]:
    """All rows, and which of them could not be read."""
    found, malformed = [], []
    for piece in cut:
        for block in reader.read_blocks(piece, columns, 1):
            found += pl.DataFrame(block.table).rows()
            malformed += (
                np.zeros(block.table.num_rows, bool) if block.malformed is None else block.malformed
            ).tolist()
    return found, malformed


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
@given(found=rows, block=st.integers(120, 400), span=st.integers(1, 200))
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_comes_once_and_in_its_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dump: Callable[..., bytes],
    found: list[tuple[str, str, int, bool]],
    block: int,
    span: int,
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
    monkeypatch.setattr(file_splits, "BYTES_PER_SPLIT", span)
    content = dump(found)
    if not content:
        return
    place = tmp_path / name
    place.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    columns = MOVIES if name.endswith(".dat") else COLUMNS
    cut = file_splits.split_file(str(place))
    assert len(cut) == (1 if place.suffix in (".gz", ".csv") else -(-len(content) // span))
    seen, malformed = read(cut, columns)
    assert malformed == [bad for *_, bad in found]
    if not name.endswith(".dat"):
        assert seen == [(None, None, None) if bad else (u, i, t) for u, i, t, bad in found]
    else:
        assert [row[2] for row in seen] == [None if bad else t for *_, t, bad in found]


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
def test_a_line_that_cannot_be_read_changes_no_other(
    tmp_path: Path, found: list[tuple[str, str]], place: int
) -> None:
    """Whether or not the quick reader can take the block as it is."""
    told = [
        f'{{"u": {u}, "i": {i}, "t": {u}, "u": "again"}}'
        for u, i in found
        if "\\ud800" not in (u + i)
    ]
    clean, cut = tmp_path / "clean.json", tmp_path / "cut.json"
    clean.write_text("".join(f"{line}\n" for line in told))
    cut.write_text("".join(f"{line}\n" for line in [*told[:place], '{{"a": 1}}', *told[place:]]))
    if told:
        rows, malformed = read([FileSplit(str(cut))], COLUMNS)
        assert sum(malformed) == 1
        assert [row for row, bad in zip(rows, malformed, strict=True) if not bad] == read(
            [FileSplit(str(clean))], COLUMNS
        )[0]


def test_a_quote_that_is_not_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a.csv"
    place.write_text("u,i,t\na,b,1\n" + '"open,b,2\n' + "a,b,3\n" * 2_000)
    with pytest.raises(DataError, match=r"a\.csv: row 2 has a quote that is not closed"):
        read([FileSplit(str(place))], COLUMNS)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 3_000)
    with pytest.raises(DataError, match=r"a\.csv: .*a quote that is not closed; write it again"):
        read([FileSplit(str(place))], COLUMNS)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "its first line is empty"),
        ("u,i,t\rx,y,1\r", "no header of a csv file"),
        ("x" * 200_000, "no header of a csv file"),
    ],
)
def test_a_header_that_is_none(tmp_path: Path, header: str, said: str) -> None:
    place = tmp_path / "a.csv"
    place.write_bytes(f"{header}\nx,y,1\n".encode())
    with pytest.raises(DataError, match=rf"a\.csv: .*{said}"):
        read([FileSplit(str(place))], COLUMNS)


def test_two_of_our_columns_may_be_one_of_theirs(tmp_path: Path) -> None:
    for name, content in (("a.csv", "i,t\nx,3\n"), ("a.json", '{"i": "x", "t": 3}\n')):
        (tmp_path / name).write_text(content)
        assert read(
            [FileSplit(str(tmp_path / name))], {"user_id": "i", "item_id": "i", "timestamp": "t"}
        )[0] == [("x", "x", 3)]


def test_what_is_gone_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json: no such file any more"):
        read([FileSplit(str(tmp_path / "a.json"))], COLUMNS)
    for name in ("b.json", "b.parquet"):
        (tmp_path / name / "inside").mkdir(parents=True)
        with pytest.raises(
            UserError, match=rf"{name}: a (folder|directory), where a file was expected"
        ):
            read([FileSplit(str(tmp_path / name))], COLUMNS)


def test_a_csv_of_malformed_rows_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_MAX_CONSECUTIVE_MALFORMED", 1_000)
    place = tmp_path / "a.csv"
    place.write_text("u,i,t\n" + "a,b,1\n" + "cut,\n" * 20_000)
    with pytest.raises(
        DataError,
        match=r"a\.csv: not a csv file in UTF-8 with one header \(.*Row #1002: Expected 3 columns, got 2",
    ):
        read([FileSplit(str(place))], COLUMNS)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MiB of text from 0.1 MiB of gzip."""
    place = tmp_path / "a.json.gz"
    place.write_bytes(
        gzip.compress(
            (json.dumps({"u": "user", "i": "item", "t": 1, "text": "x" * 10_000}) + "\n").encode()
            * 2_000
        )
    )
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 17)
    tracemalloc.start()
    seen = sum(
        block.table.num_rows for block in reader.read_blocks(FileSplit(str(place)), COLUMNS, 1)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 2_000
    assert peak < 4 << 20


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 20)
    place = tmp_path / "a.json"
    place.write_bytes(b"[" + b'{"u": 1}, ' * 300_000)
    with pytest.raises(
        DataError, match=r"a\.json: a line of more than 1 MiB; this format has a row on every line"
    ):
        list(reader.read_blocks(FileSplit(str(place)), COLUMNS, 1))


def test_a_header_with_a_mark_of_byte_order(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    place.write_bytes(b'\xef\xbb\xbf"u",i,t\r\nx,y,3\r\n')
    assert read([FileSplit(str(place))], COLUMNS) == ([("x", "y", 3)], [False])


def test_times_that_are_no_number_are_told_as_they_stand(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    place.write_text("u,i,t\na,b,1\na,b,2014-05-01\na,b,\n")
    (block, *_) = reader.read_blocks(FileSplit(str(place)), COLUMNS, 1)
    assert block.table["timestamp"].to_pylist() == [1, None, None]
    assert block.unparsed_text[1] == "2014-05-01"

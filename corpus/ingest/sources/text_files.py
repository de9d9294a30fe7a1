"""Reads text files: JSON lines, csv, MovieLens's .dat, each plain or gzip.

Files are read a block at a time, so that memory does not grow with the file. A row that cannot be
read is marked as malformed. A file that is damaged or of another format raises DataError.
"""

import ast
import csv
import gzip
import io
import json
import math
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources.block import (
    ARROW_TYPES,
    COLUMN_KINDS,
    NUMBER,
    TIME,
    Block,
    require_columns,
)

BLOCK_BYTES = 1 << 25
"""Approximate bytes of text to read at a time, and the maximum length of a line."""
MAX_UNPARSED = 5
"""Maximum malformed lines, and maximum unreadable times, that a block keeps to show."""
_MAX_LINE_CHARS = 200
"""Maximum characters to keep of a malformed line."""

_RATING_FIELDS = ("user_id", "item_id", "rating", "timestamp")
"""The fields of MovieLens's ratings.dat, in order."""
_MOVIE_FIELDS = ("item_id", "title", "genres")
"""The fields of MovieLens's movies.dat, in order."""
_MAX_CONSECUTIVE_MALFORMED = 1 << 20
"""Maximum consecutive malformed csv rows; with more, the file is taken to be of another format."""
_MAX_LINES_PER_ROW = 20
"""Maximum lines of a malformed csv row; more are taken to follow an unclosed quote."""


def read_blocks(
    file: str, columns: Mapping[str, str], byte_range: tuple[int, int] | None
) -> Iterator[Block]:
    """Yields the rows of a text file in blocks.

    Args:
        file: URI of the file; its suffix decides the format.
        columns: Our column names to the file's.
        byte_range: Read only the lines that begin in these bytes [start, stop); None: all. Must be
            None for csv and for compressed files.

    Raises:
        DataError: The file is damaged or of another format, or lacks a column.
    """
    with _open_text(file) as stream:
        if file.removesuffix(".gz").endswith(".csv"):
            yield from _read_csv(file, stream, columns)
            return
        parse = _parse_dat if file.removesuffix(".gz").endswith(".dat") else _parse_json_lines
        for lines in _read_whole_lines(file, stream, byte_range):
            yield parse(file, lines, columns)


@contextmanager
def _open_text(file: str) -> Iterator[BinaryIO]:
    """Opens a file, decompressing it if it is gzip."""
    fs, path = storage.filesystem(file)
    try:
        with fs.open(path, "rb") as stream:
            raw = gzip.GzipFile(fileobj=stream) if file.endswith(".gz") else stream
            # BufferedReader limits the length of a line; files of object stores do not.
            yield io.BufferedReader(cast(io.RawIOBase, raw))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{file}: not a whole gzip file ({error}); fetch or write it again"
        ) from None


def _read_whole_lines(
    file: str, stream: BinaryIO, byte_range: tuple[int, int] | None
) -> Iterator[bytes]:
    """Yields whole lines, about BLOCK_BYTES at a time.

    Empty bytes are yielded once if the file is empty, so that it still gives a block.
    """
    start, stop = byte_range or (0, None)
    if start:
        # The line around byte start - 1 began in the range before and is read with that range.
        stream.seek(start - 1)
        start += len(_read_to_line_end(file, stream)) - 1
    remaining = None if stop is None else stop - start
    is_first = True
    while remaining is None or remaining > 0:
        chunk = stream.read(BLOCK_BYTES if remaining is None else min(BLOCK_BYTES, remaining))
        if not chunk and not is_first:
            return
        if chunk and not chunk.endswith(b"\n"):
            chunk += _read_to_line_end(file, stream)
        if remaining is not None:
            remaining -= len(chunk)
        is_first = False
        yield chunk


def _read_to_line_end(file: str, stream: BinaryIO) -> bytes:
    """Returns the rest of the current line. Raises DataError if it is too long."""
    line_end = stream.readline(BLOCK_BYTES)
    if len(line_end) == BLOCK_BYTES and not line_end.endswith(b"\n"):
        raise DataError(
            f"{file}: a line of more than {BLOCK_BYTES >> 20} MiB; "
            "this format has a row on every line: write it again, or correct data.format"
        )
    return line_end


def _parse_json_lines(file: str, lines: bytes, columns: Mapping[str, str]) -> Block:
    """Parses JSON objects, one per line.

    Polars reads well-formed lines fast but stops at any other. If it does, every line is rewritten
    as strict JSON and read by Polars again, so that values are converted in one way only.
    """
    schema = dict.fromkeys(columns.values(), pl.String)
    malformed = dict[int, str]()
    try:
        raw = pl.read_ndjson(lines, schema=schema) if lines.strip() else pl.DataFrame(schema=schema)
    except pl.exceptions.PolarsError:
        strict = io.BytesIO()
        for row, (line, json_object) in enumerate(_to_strict_json(lines, schema)):
            strict.write((json_object or b"{}") + b"\n")
            if json_object is None:
                malformed[row] = _excerpt(line, len(malformed))
        raw = (
            pl.read_ndjson(strict.getvalue(), schema=schema)
            if strict.tell()
            else pl.DataFrame(schema=schema)
        )
    return _block_from_text(
        raw.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items()), malformed
    )


def _to_strict_json(lines: bytes, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
    """Rewrites lines as strict JSON with some of their fields.

    Some Amazon releases write Python literals instead of JSON, so these are accepted too.

    Returns:
        Each line that is not blank, with its object; None for a line without one.
    """
    readers: tuple[Callable[[str], object], ...] = (
        partial(json.loads, object_pairs_hook=_keep_first_values),
        ast.literal_eval,
    )
    for line in lines.decode("utf-8", "replace").split("\n"):
        if not line.strip():
            continue
        json_object = None
        for reader in readers:
            try:
                value = reader(line)
                if isinstance(value, dict):
                    json_object = _dump_json({name: value.get(name) for name in names})
                break
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
        yield line, json_object


def _keep_first_values(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Makes an object of its fields; of a repeated field, the first value counts, as in Polars."""
    fields: dict[str, object] = {}
    for name, value in pairs:
        fields.setdefault(name, value)
    return fields


def _dump_json(fields: Mapping[str, object]) -> bytes:
    """Writes an object as strict JSON, in which NaN and infinity become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _excerpt(line: str, num_before: int) -> str:
    """Returns what to keep of a malformed line: its beginning, or nothing after the first few.

    Args:
        line: The line.
        num_before: Malformed lines before it in the block.
    """
    return line[:_MAX_LINE_CHARS] if num_before < MAX_UNPARSED else ""


def _parse_dat(file: str, lines: bytes, columns: Mapping[str, str]) -> Block:
    """Parses lines of MovieLens: Latin-1, fields separated by double colons, no header."""
    names = _MOVIE_FIELDS if "title" in columns else _RATING_FIELDS
    rows = [
        line.rstrip("\r").split("::")
        for line in lines.decode("latin-1").split("\n")
        if line.strip()
    ]
    malformed_rows = [number for number, row in enumerate(rows) if len(row) != len(names)]
    malformed = {
        number: _excerpt("::".join(rows[number]), num_before)
        for num_before, number in enumerate(malformed_rows)
    }
    complete_rows = [
        [None] * len(names) if number in malformed else row for number, row in enumerate(rows)
    ]
    raw = pl.DataFrame(complete_rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return _block_from_text(raw.select(list(columns)), malformed)


def _read_csv(file: str, stream: BinaryIO, columns: Mapping[str, str]) -> Iterator[Block]:
    """Yields the rows of a csv file with a header; fields may be quoted.

    Rows with more or fewer fields than the header are malformed.
    """
    names = _parse_header(file, _read_to_line_end(file, stream))
    require_columns(file, columns, names)
    # Arrow leaves malformed rows out of its batches and reports them to a callback. They are queued
    # here and put back at their position, as null rows, when their batch arrives.
    pending: deque[tuple[int, str]] = deque()
    unclosed_quotes: list[int] = []

    def on_malformed_row(row: Any) -> str:
        pending.append((row.number - 1, _excerpt(row.text, len(pending))))
        if row.text.count("\n") > _MAX_LINES_PER_ROW:
            unclosed_quotes.append(row.number)
        too_many = len(pending) > _MAX_CONSECUTIVE_MALFORMED
        return "error" if unclosed_quotes or too_many else "skip"

    try:
        reader = pa.csv.open_csv(
            stream,
            # With threads, Arrow would not report the row numbers of malformed rows.
            pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names),
            pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_malformed_row),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns.values(), pa.string()),
                include_columns=list(dict.fromkeys(columns.values())),
            ),
        )
        first_row = 0
        for batch in reader:
            malformed = _pop_malformed(pending, first_row, batch.num_rows)
            rows = pl.DataFrame(batch).select(
                pl.col(theirs).alias(ours) for ours, theirs in columns.items()
            )
            first_row += batch.num_rows + len(malformed)
            yield _block_from_text(_insert_null_rows(rows, malformed), malformed)
    except pa.ArrowException as error:
        # "straddling": a row does not end within the block in which it begins, nor in the next.
        if unclosed_quotes or "straddling" in str(error):
            reason = (
                f"row {unclosed_quotes[0]:,} has a quote that is not closed, "
                "so what follows is taken for its text"
                if unclosed_quotes
                else f"a row of more than {BLOCK_BYTES >> 20} MiB, or a quote that is not closed"
            )
            raise DataError(f"{file}: {reason}; write it again") from None
        if "Empty CSV" not in str(error):  # a header without rows is allowed
            raise DataError(
                f"{file}: not a csv file in UTF-8 with one header "
                f"({str(error)[: 2 * _MAX_LINE_CHARS]}); write it again"
            ) from None
    # Malformed rows at the end of the file, after the last batch.
    yield _block_from_text(
        pl.DataFrame(schema=dict.fromkeys(columns, pl.String)).clear(len(pending)),
        dict(enumerate(line for _, line in pending)),
    )


def _parse_header(file: str, line: bytes) -> list[str]:
    """Returns the column names in the first line of a csv file. Raises DataError without any."""
    try:
        names = next(csv.reader(io.StringIO(line.decode("utf-8-sig", "replace"))), [])
    except csv.Error as error:
        raise DataError(
            f"{file}: its first line is no header of a csv file ({error}); write it again"
        ) from None
    if not any(names):
        raise DataError(
            f"{file}: its first line is empty, where the names of the columns were expected; "
            "write it again"
        )
    return names


def _pop_malformed(
    pending: deque[tuple[int, str]], first_row: int, num_good: int
) -> dict[int, str]:
    """Takes the malformed rows that are among a batch's rows, or directly follow them, off a queue.

    Args:
        pending: Malformed rows by ascending number: row number in the file, and text.
        first_row: Row number in the file at which the batch begins.
        num_good: Rows of the batch, none of which is malformed.

    Returns:
        The text of each malformed row, by row number relative to `first_row`.
    """
    malformed: dict[int, str] = {}
    while pending and pending[0][0] - first_row - len(malformed) <= num_good:
        number, line = pending.popleft()
        malformed[number - first_row] = line
    return malformed


def _insert_null_rows(rows: pl.DataFrame, malformed: Mapping[int, str]) -> pl.DataFrame:
    """Returns the rows with a null row inserted at the position of each malformed one."""
    if not malformed:
        return rows
    is_good = np.ones(rows.height + len(malformed), bool)
    is_good[list(malformed)] = False
    # For each row of the result, the index of its row in `rows`; null gathers a null row.
    source_row = pl.Series(np.cumsum(is_good) - 1).set(pl.Series(~is_good), None)
    return rows.select(pl.all().gather(source_row))


def _block_from_text(raw: pl.DataFrame, malformed: Mapping[int, str]) -> Block:
    """Converts columns of text to their types; text that is not a number becomes null.

    Args:
        raw: Our columns, as text [rows].
        malformed: Text of each malformed row, by row number.
    """
    numeric_types = {TIME: pl.Int64, NUMBER: pl.Float64}
    typed = raw.with_columns(
        pl.col(name).cast(numeric_types[COLUMN_KINDS[name]], strict=False)
        for name in raw.columns
        if COLUMN_KINDS[name] in numeric_types
    )
    unparsed_text = dict(islice(malformed.items(), MAX_UNPARSED))
    if "timestamp" in raw.columns:
        is_unparsed = typed["timestamp"].is_null() & raw["timestamp"].is_not_null()
        unparsed_rows = is_unparsed.arg_true().head(MAX_UNPARSED)
        times = raw["timestamp"].gather(unparsed_rows)
        unparsed_text |= dict(zip(unparsed_rows.to_list(), times.to_list(), strict=True))
    is_malformed = None
    if malformed:
        is_malformed = np.zeros(raw.height, bool)
        is_malformed[list(malformed)] = True
    table = typed.to_arrow().cast(
        pa.schema([(name, ARROW_TYPES[COLUMN_KINDS[name]]) for name in raw.columns])
    )
    return Block(table, dict.fromkeys(raw.columns, "string"), is_malformed, unparsed_text)

"""Files of text, a block at a time, so that memory does not grow with a file: JSON lines, csv, MovieLens's .dat; plain or gzip.

A row that cannot be read is told as malformed; a file that is no whole file of its kind is an error.
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
"""Bytes of text that are read at a time, about; no line is longer."""
MAX_UNPARSED = 5
"""What of a block could not be read and is kept to be shown: so many lines, and times, at most."""
_MAX_LINE_CHARS = 200
"""Characters of a line that are kept, at most."""

_RATING_FIELDS, _MOVIE_FIELDS = (
    ("user_id", "item_id", "rating", "timestamp"),
    ("item_id", "title", "genres"),
)
"""Fields of MovieLens's files."""
_MAX_CONSECUTIVE_MALFORMED = 1 << 20
"""Malformed rows of csv that follow each other, at most."""
_MAX_LINES_PER_ROW = 20
"""Lines of a malformed row of csv, at most: more are what follows a quote that is not closed."""


def read_blocks(
    file: str, columns: Mapping[str, str], byte_range: tuple[int, int] | None
) -> Iterator[Block]:
    """A file's rows in blocks. span: only the lines that begin in these bytes [start, stop); not for csv, nor for what is packed.

    Raises DataError naming the file.
    """
    with _open_text(file) as stream:
        if file.removesuffix(".gz").endswith(".csv"):
            yield from _read_csv(file, stream, columns)
            return
        of_lines = _parse_dat if file.removesuffix(".gz").endswith(".dat") else _parse_json_lines
        for lines in _read_whole_lines(file, stream, byte_range):
            yield of_lines(file, lines, columns)


@contextmanager
def _open_text(file: str) -> Iterator[BinaryIO]:
    """The text of a file."""
    fs, path = storage.filesystem(file)
    try:
        with fs.open(path, "rb") as stream:
            packed = gzip.GzipFile(fileobj=stream) if file.endswith(".gz") else stream
            yield io.BufferedReader(
                cast(io.RawIOBase, packed)
            )  # files of object stores know no longest line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{file}: not a whole gzip file ({error}); fetch or write it again"
        ) from None


def _read_whole_lines(
    file: str, stream: BinaryIO, byte_range: tuple[int, int] | None
) -> Iterator[bytes]:
    """Whole lines, about BYTES at a time; once nothing, if there is no line."""
    start, stop = byte_range or (0, None)
    if start:
        stream.seek(start - 1)
        start += (
            len(_read_to_line_end(file, stream)) - 1
        )  # the line that the byte before belongs to is that of the span before
    left = None if stop is None else stop - start
    begun = False
    while left is None or left > 0:
        piece = stream.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left))
        if not piece and begun:
            return
        whole = (
            piece if not piece or piece.endswith(b"\n") else piece + _read_to_line_end(file, stream)
        )
        left = None if left is None else left - len(whole)
        begun = True
        yield whole


def _read_to_line_end(file: str, stream: BinaryIO) -> bytes:
    """What is left of a line."""
    found = stream.readline(BLOCK_BYTES)
    if len(found) == BLOCK_BYTES and not found.endswith(b"\n"):
        raise DataError(
            f"{file}: a line of more than {BLOCK_BYTES >> 20} MiB; this format has a row on every line: write it again, or correct data.format"
        )
    return found


def _parse_json_lines(file: str, lines: bytes, columns: Mapping[str, str]) -> Block:
    """JSON objects, one a line. Where there is one that is none, each line is written anew as strict JSON first: values are read in one way only."""
    schema = dict.fromkeys(columns.values(), pl.String)
    malformed = dict[int, str]()
    try:
        raw = pl.read_ndjson(lines, schema=schema) if lines.strip() else pl.DataFrame(schema=schema)
    except pl.exceptions.PolarsError:
        strict = io.BytesIO()
        for row, (line, told) in enumerate(_to_strict_json(lines, schema)):
            strict.write((told or b"{}") + b"\n")
            if told is None:
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
    """Each line, and what of it is wanted as strict JSON; None where it holds no object. Some releases write Python's literals instead of JSON."""
    readers: tuple[Callable[[str], object], ...] = (
        partial(json.loads, object_pairs_hook=_keep_first_values),
        ast.literal_eval,
    )
    for line in lines.decode("utf-8", "replace").split("\n"):
        if not line.strip():
            continue
        told = None
        for reader in readers:
            try:
                found = reader(line)
                told = (
                    _dump_json({name: found.get(name) for name in names})
                    if isinstance(found, dict)
                    else None
                )
                break
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
        yield line, told


def _keep_first_values(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, in which the first of several values of a name counts."""
    found: dict[str, object] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def _dump_json(fields: Mapping[str, object]) -> bytes:
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _excerpt(line: str, num_before: int) -> str:
    """What is kept of a malformed line, to be shown: of the first few of a block their beginnings. before: malformed lines before it."""
    return line[:_MAX_LINE_CHARS] if num_before < MAX_UNPARSED else ""


def _parse_dat(file: str, lines: bytes, columns: Mapping[str, str]) -> Block:
    """Fields between double colons, in Latin-1, without a header."""
    names = _MOVIE_FIELDS if "title" in columns else _RATING_FIELDS
    rows = [
        line.rstrip("\r").split("::")
        for line in lines.decode("latin-1").split("\n")
        if line.strip()
    ]
    wrong = [place for place, row in enumerate(rows) if len(row) != len(names)]
    malformed = {
        place: _excerpt("::".join(rows[place]), before) for before, place in enumerate(wrong)
    }
    whole = [[None] * len(names) if place in malformed else row for place, row in enumerate(rows)]
    raw = pl.DataFrame(whole, schema=dict.fromkeys(names, pl.String), orient="row")
    return _block_from_text(raw.select(list(columns)), malformed)


def _read_csv(file: str, stream: BinaryIO, columns: Mapping[str, str]) -> Iterator[Block]:
    """Rows under a header, quoted or not. Those with more or fewer fields than it are malformed."""
    names = _parse_header(file, _read_to_line_end(file, stream))
    require_columns(file, columns, names)
    bad: deque[tuple[int, str]] = deque()
    unclosed: list[int] = []

    def malformed(row: Any) -> str:
        bad.append((row.number - 1, _excerpt(row.text, len(bad))))
        if row.text.count("\n") > _MAX_LINES_PER_ROW:
            unclosed.append(row.number)
        return "error" if unclosed or len(bad) > _MAX_CONSECUTIVE_MALFORMED else "skip"

    try:
        reader = pa.csv.open_csv(
            stream,
            pa.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=names
            ),  # with threads rows had no numbers
            pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=malformed),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns.values(), pa.string()),
                include_columns=list(dict.fromkeys(columns.values())),
            ),
        )
        first = 0
        for batch in reader:
            among = _pop_malformed(bad, first, batch.num_rows)
            whole = pl.DataFrame(batch).select(
                pl.col(theirs).alias(ours) for ours, theirs in columns.items()
            )
            first += batch.num_rows + len(among)
            yield _block_from_text(_insert_null_rows(whole, among), among)
    except pa.ArrowException as error:
        if unclosed or "straddling" in str(error):
            swallowed = "has a quote that is not closed, so what follows is taken for its text"
            wrong = (
                f"row {unclosed[0]:,} {swallowed}"
                if unclosed
                else f"a row of more than {BLOCK_BYTES >> 20} MiB, or a quote that is not closed"
            )
            raise DataError(f"{file}: {wrong}; write it again") from None
        if "Empty CSV" not in str(error):  # a header alone
            raise DataError(
                f"{file}: not a csv file in UTF-8 with one header ({str(error)[: 2 * _MAX_LINE_CHARS]}); write it again"
            ) from None
    yield _block_from_text(
        pl.DataFrame(schema=dict.fromkeys(columns, pl.String)).clear(len(bad)),
        dict(enumerate(line for _, line in bad)),
    )


def _parse_header(file: str, line: bytes) -> list[str]:
    """The names in the first line of a csv file."""
    try:
        names = next(csv.reader(io.StringIO(line.decode("utf-8-sig", "replace"))), [])
    except csv.Error as error:
        raise DataError(
            f"{file}: its first line is no header of a csv file ({error}); write it again"
        ) from None
    if not any(names):
        raise DataError(
            f"{file}: its first line is empty, where the names of the columns were expected; write it again"
        )
    return names


def _pop_malformed(bad: deque[tuple[int, str]], first: int, num_whole: int) -> dict[int, str]:
    """Malformed rows among so many whole ones and right behind them, by their place after the first of all; takes them off the list."""
    found: dict[int, str] = {}
    while bad and bad[0][0] - first - len(found) <= num_whole:
        number, line = bad.popleft()
        found[number - first] = line
    return found


def _insert_null_rows(rows: pl.DataFrame, malformed: Mapping[int, str]) -> pl.DataFrame:
    """Rows with null ones among them where malformed ones were."""
    if not malformed:
        return rows
    is_whole = np.ones(rows.height + len(malformed), bool)
    is_whole[list(malformed)] = False
    place = pl.Series(np.cumsum(is_whole) - 1).set(pl.Series(~is_whole), None)
    return rows.select(pl.all().gather(place))


def _block_from_text(raw: pl.DataFrame, malformed: Mapping[int, str]) -> Block:
    """Text to our types; what is no number becomes null, to be counted among the rows that are no use. malformed: lines, by row."""
    kinds = {TIME: pl.Int64, NUMBER: pl.Float64}
    made = raw.with_columns(
        pl.col(name).cast(kinds[COLUMN_KINDS[name]], strict=False)
        for name in raw.columns
        if COLUMN_KINDS[name] in kinds
    )
    odd = dict(islice(malformed.items(), MAX_UNPARSED))
    if "timestamp" in raw.columns:
        unlike = (
            (made["timestamp"].is_null() & raw["timestamp"].is_not_null())
            .arg_true()
            .head(MAX_UNPARSED)
        )
        odd |= dict(zip(unlike.to_list(), raw["timestamp"].gather(unlike).to_list(), strict=True))
    mask = None
    if malformed:
        mask = np.zeros(raw.height, bool)
        mask[list(malformed)] = True
    table = made.to_arrow().cast(
        pa.schema([(name, ARROW_TYPES[COLUMN_KINDS[name]]) for name in raw.columns])
    )
    return Block(table, dict.fromkeys(raw.columns, "string"), mask, odd)

"""Reads text files, plain or compressed: csv, tabs, MovieLens's .dat, JSON lines.

Files are read a block at a time, so that memory does not grow with the file. A row that cannot be
read is marked as malformed. A file that is damaged or of another format raises DataError.
"""

import bz2
import csv
import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from cluster import storage
from cluster.errors import DataError
from cluster.storage_errors import is_storage_error
from corpus.ingest import ninerec
from corpus.ingest.sources import file_names, json_lines
from corpus.ingest.sources.arrow_threads import ArrowReferences
from corpus.ingest.sources.block import Block, require_columns
from corpus.ingest.sources.quoting import LoneBackslashDoubler, Quoting, find_quoting
from corpus.ingest.sources.text_block import MAX_LINE_CHARS, block_from_text, excerpt

BLOCK_BYTES = 1 << 25
"""Approximate bytes of text to read at a time, and the maximum length of a line."""
_RATING_FIELDS = ("user_id", "item_id", "rating", "timestamp")
"""The fields of MovieLens's ratings.dat, in order."""
_MOVIE_FIELDS = ("item_id", "title", "genres")
"""The fields of MovieLens's movies.dat, in order."""
_TAB = ("\t",)
_DELIMITERS = (",", "\t", ";", "|", "\x01")
"""Characters between the fields of csv: of several that fit the header, the first is taken."""
_MAX_CONSECUTIVE_MALFORMED = 1 << 20
"""Maximum consecutive malformed csv rows; with more, the file is taken to be of another format."""
_MAX_LINES_PER_ROW = 20
"""Maximum lines of a malformed csv row; more are taken to follow an unclosed quote."""


def read_blocks(
    file: str,
    columns: Mapping[str, str],
    byte_range: tuple[int, int] | None,
    ticks_per_second: int,
) -> Iterator[Block]:
    """Yields the rows of a text file in blocks.

    Args:
        file: URI of the file; its suffix decides the format.
        columns: Our column names to the file's.
        byte_range: Read only the lines that begin in these bytes [start, stop); None: all. Must be
            None for csv and for compressed files.
        ticks_per_second: Ticks of a time in a second, if it is a number.

    Raises:
        DataError: The file is damaged or of another format, or lacks a column.
    """
    if not file_names.is_kind(file, *file_names.ROW_PER_LINE):
        yield from _read_csv(file, columns, ticks_per_second)
        return
    parse = (
        partial(_parse_dat, columns=columns, ticks_per_second=ticks_per_second)
        if file_names.is_kind(file, file_names.DAT)
        else partial(json_lines.parse, columns=columns, ticks_per_second=ticks_per_second)
    )
    with _open_text(file) as stream:
        for lines in _read_whole_lines(file, stream, byte_range):
            yield parse(lines)


_SIGNATURES = {
    b"\x1f\x8b": "gzip; name it .gz",
    b"BZh": "bzip2; name it .bz2",
    b"\x28\xb5\x2f\xfd": "zstd; name it .zst",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\xfd7zXZ": "xz; unpack it",
    b"PAR1": "parquet; name it .parquet",
    b"Obj\x01": "Avro; write it as parquet",
    b"\xff\xfe": "UTF-16; write it in UTF-8",
    b"\xfe\xff": "UTF-16; write it in UTF-8",
}
"""First bytes of files that are not UTF-8 text: what they are, and what to do."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class _Header:
    """The first line of a text file.

    Attributes:
        delimiter: The character between fields.
        names: Names of the columns.
    """

    delimiter: str
    names: list[str]


@contextmanager
def _open_text(file: str) -> Iterator[BinaryIO]:
    """Opens a file, decompressing it, behind its byte order mark.

    Raises:
        DataError: The content is not what the suffix says, or is damaged.
    """
    fs, path = storage.filesystem(file)
    compression = file_names.compression(file)
    try:
        with fs.open(path, "rb") as stream:
            if compression == ".gz":
                raw: Any = gzip.GzipFile(fileobj=stream)
            elif compression == ".bz2":
                raw = bz2.BZ2File(stream)
            elif compression == ".zst":
                raw = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
            else:
                raw = stream
            # BufferedReader limits the length of a line; files of object stores do not.
            text = io.BufferedReader(cast(io.RawIOBase, raw))
            _check_is_text(file, text.peek(len(_BYTE_ORDER_MARK)))
            if text.peek(len(_BYTE_ORDER_MARK)).startswith(_BYTE_ORDER_MARK):
                text.read(len(_BYTE_ORDER_MARK))
            yield text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{file}: not a whole gzip file ({error}); fetch or write it again"
        ) from None
    except (OSError, pa.ArrowException) as error:
        if not compression or is_storage_error(error):
            raise
        raise DataError(
            f"{file}: not a whole {compression} file ({error}); fetch or write it again"
        ) from None


def _check_is_text(file: str, head: bytes) -> None:
    """Checks that the first bytes of a file may be text in UTF-8; raises DataError if not."""
    for signature, advice in _SIGNATURES.items():
        if head.startswith(signature):
            raise DataError(f"{file}: its content is {advice}")
    if b"\0" in head[:MAX_LINE_CHARS]:
        raise DataError(
            f"{file}: its content is binary or UTF-16; write it in UTF-8, or as parquet"
        )


def _read_whole_lines(
    file: str, stream: BinaryIO, byte_range: tuple[int, int] | None
) -> Iterator[bytes]:
    """Yields whole lines, about BLOCK_BYTES at a time.

    Empty bytes are yielded once if the file is empty, so that it still gives a block.
    """
    start, stop = byte_range or (0, None)
    if byte_range is not None and not start:
        start = stream.tell()  # behind a byte order mark
    elif start:
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


def _parse_dat(lines: bytes, columns: Mapping[str, str], ticks_per_second: int) -> Block:
    """Parses lines of MovieLens: fields separated by double colons, no header."""
    names = _MOVIE_FIELDS if "title" in columns else _RATING_FIELDS
    rows = [
        _decode_line(line).rstrip("\r").split("::") for line in lines.split(b"\n") if line.strip()
    ]
    malformed_rows = [number for number, row in enumerate(rows) if len(row) != len(names)]
    malformed = {
        number: excerpt("::".join(rows[number]), num_before)
        for num_before, number in enumerate(malformed_rows)
    }
    complete_rows = [
        [None] * len(names) if number in malformed else row for number, row in enumerate(rows)
    ]
    raw = pl.DataFrame(complete_rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return block_from_text(raw.select(list(columns)), malformed, ticks_per_second)


def _decode_line(line: bytes) -> str:
    """Decodes a line of MovieLens: its later releases are in UTF-8, its earlier ones in Latin-1."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _read_csv(file: str, columns: Mapping[str, str], ticks_per_second: int) -> Iterator[Block]:
    """Yields the rows of a csv file; fields may be quoted.

    Rows with more or fewer fields than the header, or the first row, are malformed.
    """
    with _open_text(file) as stream:
        first_line = _read_to_line_end(file, stream)
    names = ninerec.name_fields(file, first_line, columns)
    header = _Header(",", names) if names else _parse_header(file, first_line, columns)
    open_rows = partial(_open_text if names else _open_behind_header, file)
    # The file is read twice, since its last row may show how its first one is quoted.
    quoting = find_quoting(file, open_rows, header.delimiter)
    with open_rows() as stream:
        for rows, malformed in _parse_csv(file, stream, columns, header, quoting):
            yield block_from_text(_insert_null_rows(rows, malformed), malformed, ticks_per_second)


@contextmanager
def _open_behind_header(file: str) -> Iterator[BinaryIO]:
    """Opens a text file behind its first line."""
    with _open_text(file) as stream:
        _read_to_line_end(file, stream)
        yield stream


def _parse_csv(
    file: str, stream: BinaryIO, columns: Mapping[str, str], header: _Header, quoting: Quoting
) -> Iterator[tuple[pl.DataFrame, dict[int, str]]]:
    """Yields well-formed rows in batches, each with the text of malformed rows among them.

    The text of malformed rows is by row number. Numbers count from the first row of the batch and
    include malformed rows.
    """
    # Arrow leaves malformed rows out of its batches and reports them to a callback. They are queued
    # here and put back at their position, as null rows, when their batch arrives.
    pending: deque[tuple[int, str]] = deque()
    unclosed_quotes: list[int] = []

    def on_malformed_row(row: Any) -> str:
        pending.append((row.number - 1, excerpt(row.text, len(pending))))
        if row.text.count("\n") > _MAX_LINES_PER_ROW:
            unclosed_quotes.append(row.number)
        too_many = len(pending) > _MAX_CONSECUTIVE_MALFORMED
        return "error" if unclosed_quotes or too_many else "skip"

    is_escaped = quoting is Quoting.BACKSLASH
    references = ArrowReferences()
    reader = None
    try:
        reader = pa.csv.open_csv(
            references.wrap(cast(BinaryIO, LoneBackslashDoubler(stream)) if is_escaped else stream),
            # With threads, Arrow would not report the row numbers of malformed rows.
            pa.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=header.names
            ),
            pa.csv.ParseOptions(
                delimiter=header.delimiter,
                quote_char=False if quoting is Quoting.UNQUOTED else '"',
                escape_char="\\" if is_escaped else False,
                newlines_in_values=True,
                invalid_row_handler=on_malformed_row,
            ),
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
            if is_escaped:  # MySQL writes a backslash before a line break, too
                rows = rows.with_columns(pl.all().str.replace_all("\\\n", "\n", literal=True))
            first_row += batch.num_rows + len(malformed)
            yield rows, malformed
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
                f"({str(error)[: 2 * MAX_LINE_CHARS]}); write it again"
            ) from None
    finally:
        del reader
        references.wait_for_release()
    # Malformed rows at the end of the file, after the last batch.
    yield (
        pl.DataFrame(schema=dict.fromkeys(columns, pl.String)),
        dict(enumerate(line for _, line in pending)),
    )


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


def _parse_header(file: str, line: bytes, columns: Mapping[str, str]) -> _Header:
    """Returns the header of a text file, split at the delimiter that gives the columns to read.

    Raises:
        DataError: It has not all the columns, or one of them twice.
    """
    is_tabbed = file_names.is_kind(file, *file_names.TAB_SEPARATED)
    headers = [
        _Header(delimiter, _split_header(file, line, delimiter))
        for delimiter in (_TAB if is_tabbed else _DELIMITERS)
    ]
    fitting = next(
        (header for header in headers if set(columns.values()) <= set(header.names)), headers[0]
    )
    require_columns(file, columns, fitting.names)
    return fitting


def _split_header(file: str, line: bytes, delimiter: str) -> list[str]:
    """Returns the column names in a first line; raises DataError without any."""
    text = line.decode("utf-8", "replace")
    if "\r" in text.rstrip("\r\n"):
        raise DataError(
            f"{file}: its first line is no header of a csv file, or its lines end in CR alone; "
            "write it again with line feeds"
        )
    try:
        names = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(
            f"{file}: its first line is no header of a csv file ({error}); write it again"
        ) from None
    if not any(names):
        raise DataError(
            f"{file}: its first line is empty, where the names of the columns were expected; "
            "write it again"
        )
    if file_names.is_kind(file, *file_names.RECBOLE):
        return [name.partition(":")[0] for name in names]
    return names

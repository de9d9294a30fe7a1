"""Reads parquet files, whole or some row groups of one."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from cluster.storage_errors import is_storage_error
from corpus.ingest.sources.block import (
    ARROW_TYPES,
    COLUMN_KINDS,
    IDS,
    NUMBER,
    TEXT,
    TIME,
    Block,
    require_columns,
)
from corpus.ingest.sources.text_values import parse_times, to_ticks


def read_block(
    file: str, columns: Mapping[str, str], ticks_per_second: int, row_groups: Sequence[int] | None
) -> Block:
    """Returns the rows of a parquet file.

    Args:
        file: URI of the file.
        columns: Our column names to the file's.
        ticks_per_second: Ticks of a time in a second; dates and timestamps are converted to them.
        row_groups: Row groups to read; None: all.

    Raises:
        DataError: The file is damaged, or a column is missing or of a wrong type.
    """
    if row_groups is None:
        return _read_block(
            file, pa.BufferReader(storage.read_bytes(file)), columns, ticks_per_second, None
        )
    fs, path = storage.filesystem(file)
    with fs.open(path, "rb") as opened:
        return _read_block(file, opened, columns, ticks_per_second, row_groups)


def _read_block(
    file: str,
    content: Any,
    columns: Mapping[str, str],
    ticks_per_second: int,
    row_groups: Sequence[int] | None,
) -> Block:
    converted = {}
    file_types = {}
    try:
        source = pq.ParquetFile(
            content,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",  # as nanoseconds, the year 9999 would wrap around
        )
        chosen = range(source.num_row_groups) if row_groups is None else row_groups
        require_columns(file, columns, source.schema_arrow.names)
        # One column at a time: in the file's own type, a column can be large.
        for ours, theirs in columns.items():
            kind = COLUMN_KINDS[ours]
            # Not in Arrow's threads: one may still hold `content`, an object of Python, when the
            # interpreter ends, which aborts the process ("terminate called").
            column = source.read_row_groups(chosen, columns=[theirs], use_threads=False)[theirs]
            if not _is_allowed_type(column.type, kind):
                raise DataError(
                    f"{file}: column {theirs} is {column.type}, {kind} are allowed; convert it"
                )
            is_dictionary = pa.types.is_dictionary(column.type)
            file_types[ours] = str(column.type.value_type if is_dictionary else column.type)
            converted[ours] = _convert_column(file, theirs, column, kind, ticks_per_second)
    except (pa.ArrowException, OSError) as error:
        if is_storage_error(error):
            raise
        raise DataError(f"{file}: not a whole parquet file ({error}); write it again") from None
    return Block(pa.table(converted), file_types)


def _convert_column(
    file: str, name: str, column: pa.ChunkedArray, kind: str, ticks_per_second: int
) -> pa.ChunkedArray:
    """Casts a column to the type of its kind; times become ticks, without fractions."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if kind == TIME:
            return _convert_times(column, ticks_per_second)
        if _is_text(column.type):
            # A writer may put any bytes into a column of text; only this reads them all.
            column = column.cast(pa.large_string())
            column.validate(full=True)
        if kind == IDS and pa.types.is_decimal(column.type):
            column = column.cast(pa.decimal128(38, 0))
        return column.cast(ARROW_TYPES[kind])
    except pa.ArrowException as error:
        raise DataError(
            f"{file}: column {name} cannot be read as {kind} ({error}); convert it"
        ) from None


def _convert_times(column: pa.ChunkedArray, ticks_per_second: int) -> pa.ChunkedArray:
    """Converts a column of times to ticks: points in time from seconds, numbers as they are."""
    if _is_text(column.type):
        text = pl.Series(column.cast(pa.large_string()), dtype=pl.String)
        return pa.chunked_array([parse_times(text, ticks_per_second).to_arrow()])
    if pa.types.is_floating(column.type):
        whole = pl.Series(column, dtype=pl.Float64).fill_nan(None).floor()
        return pa.chunked_array([whole.cast(pl.Int64, strict=False).to_arrow()])
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        seconds = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
        ticks = to_ticks(pl.Series(seconds, dtype=pl.Int64), ticks_per_second)
        return pa.chunked_array([ticks.to_arrow()])
    return column.cast(pa.int64(), safe=not pa.types.is_decimal(column.type))


def _is_allowed_type(column_type: pa.DataType, kind: str) -> bool:
    """Returns whether a column of a kind may have a type in the file."""
    if pa.types.is_dictionary(column_type):
        return _is_allowed_type(column_type.value_type, kind)
    is_integer = pa.types.is_integer(column_type)
    is_decimal = pa.types.is_decimal(column_type)
    return bool(
        {
            IDS: _is_text(column_type) or is_integer or (is_decimal and not column_type.scale),
            TEXT: _is_text(column_type),
            # Single precision holds the times of today to two minutes only.
            TIME: is_integer
            or is_decimal
            or pa.types.is_float64(column_type)
            or pa.types.is_timestamp(column_type)
            or pa.types.is_date(column_type)
            or _is_text(column_type),
            NUMBER: is_integer or is_decimal or pa.types.is_floating(column_type),
        }[kind]
    )


def _is_text(column_type: pa.DataType) -> bool:
    """Returns whether a type is text, or bytes, as which Hive and Impala write text."""
    return bool(
        pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_string_view(column_type)
        or pa.types.is_binary(column_type)
        or pa.types.is_large_binary(column_type)
    )

"""Reads parquet files, whole or some row groups of one."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
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


def read_block(
    file: str, columns: Mapping[str, str], ticks_per_second: int, row_groups: Sequence[int] | None
) -> Block:
    """Returns the rows of a parquet file.

    Args:
        file: URI of the file.
        columns: Our column names to the file's.
        ticks_per_second: Ticks of a time in a second; columns of type timestamp are converted to
            them.
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
        source = pq.ParquetFile(content, page_checksum_verification=True)
        chosen = range(source.num_row_groups) if row_groups is None else row_groups
        require_columns(file, columns, source.schema_arrow.names)
        # One column at a time: in the file's own type, a column can be large.
        for ours, theirs in columns.items():
            kind = COLUMN_KINDS[ours]
            column = source.read_row_groups(chosen, columns=[theirs])[theirs]
            if not _is_allowed_type(column.type, kind):
                raise DataError(
                    f"{file}: column {theirs} is {column.type}, {kind} are allowed; convert it"
                )
            file_types[ours] = str(column.type)
            converted[ours] = _convert_column(file, theirs, column, kind, ticks_per_second)
    except (pa.ArrowException, OSError) as error:
        if storage.is_storage_error(error):
            raise
        raise DataError(f"{file}: not a whole parquet file ({error}); write it again") from None
    return Block(pa.table(converted), file_types)


def _convert_column(
    file: str, name: str, column: pa.ChunkedArray, kind: str, ticks_per_second: int
) -> pa.ChunkedArray:
    """Casts a column to the type of its kind; timestamps become ticks, in whole seconds."""
    try:
        if pa.types.is_timestamp(column.type):
            seconds = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
            return pa.compute.multiply(seconds, ticks_per_second)
        return column.cast(ARROW_TYPES[kind])
    except pa.ArrowException as error:
        raise DataError(
            f"{file}: column {name} cannot be read as {kind} ({error}); convert it"
        ) from None


def _is_allowed_type(column_type: pa.DataType, kind: str) -> bool:
    """Returns whether a column of a kind may have a type in the file."""
    is_integer = pa.types.is_integer(column_type)
    is_text = (
        pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_string_view(column_type)
    )
    return bool(
        {
            IDS: is_text or is_integer,
            TEXT: is_text,
            TIME: is_integer or pa.types.is_timestamp(column_type),
            NUMBER: is_integer or pa.types.is_floating(column_type),
        }[kind]
    )

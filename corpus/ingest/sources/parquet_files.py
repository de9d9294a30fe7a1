"""A parquet file of behaviours, or some row groups of it."""

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
    """Those row groups, or all. Raises DataError naming the file, and the column if one is missing or of another type."""
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
    made, types = {}, {}
    try:
        source = pq.ParquetFile(content, page_checksum_verification=True)
        chosen = range(source.num_row_groups) if row_groups is None else row_groups
        require_columns(file, columns, source.schema_arrow.names)
        for ours, theirs in columns.items():
            found = source.read_row_groups(chosen, columns=[theirs])[
                theirs
            ]  # one at a time: as it was written, a column can be large
            if not _is_allowed_type(found.type, COLUMN_KINDS[ours]):
                raise DataError(
                    f"{file}: column {theirs} is {found.type}, {COLUMN_KINDS[ours]} are allowed; convert it"
                )
            types[ours] = str(found.type)
            made[ours] = _convert_column(file, theirs, found, COLUMN_KINDS[ours], ticks_per_second)
    except (pa.ArrowException, OSError) as error:
        if storage.is_storage_error(error):
            raise
        raise DataError(f"{file}: not a whole parquet file ({error}); write it again") from None
    return Block(pa.table(made), types)


def _convert_column(
    file: str, name: str, column: pa.ChunkedArray, kind: str, ticks_per_second: int
) -> pa.ChunkedArray:
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
    number = pa.types.is_integer(column_type)
    text = (
        pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_string_view(column_type)
    )
    return bool(
        {
            IDS: text or number,
            TEXT: text,
            TIME: number or pa.types.is_timestamp(column_type),
            NUMBER: number or pa.types.is_floating(column_type),
        }[kind]
    )

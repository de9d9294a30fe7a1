"""A parquet file of behaviours, or some row groups of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources.block import IDS, KINDS, NUMBER, TEXT, TIME, TYPES, Block, require


def read(file: str, columns: Mapping[str, str], ticks: int, groups: Sequence[int] | None) -> Block:
    """Those row groups, or all. Raises DataError naming the file, and the column if one is missing or of another type."""
    if groups is None:
        return _read(file, pa.BufferReader(storage.read_bytes(file)), columns, ticks, None)
    fs, path = storage.filesystem(file)
    with fs.open(path, "rb") as opened:
        return _read(file, opened, columns, ticks, groups)


def _read(
    file: str, content: Any, columns: Mapping[str, str], ticks: int, groups: Sequence[int] | None
) -> Block:
    made, types = {}, {}
    try:
        source = pq.ParquetFile(content, page_checksum_verification=True)
        chosen = range(source.num_row_groups) if groups is None else groups
        require(file, columns, source.schema_arrow.names)
        for ours, theirs in columns.items():
            found = source.read_row_groups(chosen, columns=[theirs])[
                theirs
            ]  # one at a time: as it was written, a column can be large
            if not _fits(found.type, KINDS[ours]):
                raise DataError(
                    f"{file}: column {theirs} is {found.type}, {KINDS[ours]} are allowed; convert it"
                )
            types[ours] = str(found.type)
            made[ours] = _canonical(file, theirs, found, KINDS[ours], ticks)
    except (pa.ArrowException, OSError) as error:
        if storage.of_store(error):
            raise
        raise DataError(f"{file}: not a whole parquet file ({error}); write it again") from None
    return Block(pa.table(made), types)


def _canonical(
    file: str, name: str, column: pa.ChunkedArray, kind: str, ticks: int
) -> pa.ChunkedArray:
    try:
        if pa.types.is_timestamp(column.type):
            seconds = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
            return pa.compute.multiply(seconds, ticks)
        return column.cast(TYPES[kind])
    except pa.ArrowException as error:
        raise DataError(
            f"{file}: column {name} cannot be read as {kind} ({error}); convert it"
        ) from None


def _fits(found: pa.DataType, kind: str) -> bool:
    number = pa.types.is_integer(found)
    text = (
        pa.types.is_string(found)
        or pa.types.is_large_string(found)
        or pa.types.is_string_view(found)
    )
    return bool(
        {
            IDS: text or number,
            TEXT: text,
            TIME: number or pa.types.is_timestamp(found),
            NUMBER: number or pa.types.is_floating(found),
        }[kind]
    )

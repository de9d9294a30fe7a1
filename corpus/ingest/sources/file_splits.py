"""How large files of interactions are, and what of them is read at a time; found without reading them."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage

ROWS_PER_SPLIT = 1 << 20
"""Rows of a piece of a parquet file, at most, unless a row group has more."""
TEXT_BYTES_PER_ROW = 50
"""Bytes of an interaction in a file of text, as expected."""
COMPRESSION_RATIO = 4
"""Times that a packed file of text is as large when it is unpacked, as expected."""
BYTES_PER_SPLIT = 1 << 27
"""Bytes of a piece of a file of lines."""
_SPLITTABLE_SUFFIXES = (".json", ".jsonl", ".dat")
"""A line of these is a row, whatever comes before it. A field of csv may hold lines, and what is packed is read from its beginning."""


@dataclass(frozen=True)
class FileSplit:
    """What a task reads: a file; or some row groups of one, or the lines that begin in a span of its bytes [start, stop)."""

    file: str
    row_groups: tuple[int, ...] | None = None
    byte_range: tuple[int, int] | None = None


def estimate_rows(file: str) -> int:
    """Rows of a file: of parquet as its footer says, of text as expected from its size. 0 for a file that cannot be read: its reader says why."""
    if file.endswith(".parquet"):
        return sum(_row_group_sizes(file))
    return (
        _file_size(file) * (COMPRESSION_RATIO if file.endswith(".gz") else 1) // TEXT_BYTES_PER_ROW
    )


def split_file(file: str) -> list[FileSplit]:
    """The pieces of a file, in its order: of parquet ranges of row groups, of lines spans of bytes, else all of it."""
    if file.endswith(_SPLITTABLE_SUFFIXES):
        return [
            FileSplit(file, byte_range=(start, start + BYTES_PER_SPLIT))
            for start in range(0, _file_size(file), BYTES_PER_SPLIT)
        ] or [FileSplit(file)]
    found: list[list[int]] = []
    size = ROWS_PER_SPLIT
    for group, height in enumerate(_row_group_sizes(file) if file.endswith(".parquet") else ()):
        if size + height > ROWS_PER_SPLIT:
            found.append([])
            size = 0
        found[-1].append(group)
        size += height
    return [FileSplit(file, tuple(groups)) for groups in found] or [FileSplit(file)]


def _file_size(file: str) -> int:
    fs, path = storage.filesystem(file)
    return int(fs.size(path))


def _row_group_sizes(file: str) -> list[int]:
    """Rows of each row group."""
    fs, path = storage.filesystem(file)
    try:
        with fs.open(path, "rb") as opened:
            footer = pq.ParquetFile(opened).metadata
            return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        if storage.is_storage_error(error):
            raise
        return []

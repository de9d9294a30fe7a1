"""How large files of interactions are, and what of them is read at a time; found without reading them."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage

ROWS = 1 << 20
"""Rows of a piece of a parquet file, at most, unless a row group has more."""
TEXT_BYTES = 50
"""Bytes of an interaction in a file of text, as expected."""
UNPACKED = 4
"""Times that a packed file of text is as large when it is unpacked, as expected."""


@dataclass(frozen=True)
class Piece:
    """What is read at a time: a file, or some row groups of one."""

    file: str
    groups: tuple[int, ...] | None = None


def rows(file: str) -> int:
    """Rows of a file: of parquet as its footer says, of text as expected from its size. 0 for a file that cannot be read: its reader says why."""
    if file.endswith(".parquet"):
        return sum(_groups(file))
    fs, path = storage.filesystem(file)
    return int(fs.size(path)) * (UNPACKED if file.endswith(".gz") else 1) // TEXT_BYTES


def cut(file: str) -> list[Piece]:
    """The pieces of a file, in its order: of parquet ranges of row groups, else all of it."""
    found: list[list[int]] = []
    size = ROWS
    for group, height in enumerate(_groups(file) if file.endswith(".parquet") else ()):
        if size + height > ROWS:
            found.append([])
            size = 0
        found[-1].append(group)
        size += height
    return [Piece(file, tuple(groups)) for groups in found] or [Piece(file)]


def _groups(file: str) -> list[int]:
    """Rows of each row group."""
    fs, path = storage.filesystem(file)
    try:
        with fs.open(path, "rb") as opened:
            footer = pq.ParquetFile(opened).metadata
            return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    except (pa.ArrowException, OSError):
        return []

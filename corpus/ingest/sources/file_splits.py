"""Splits large files of interactions, and estimates their number of rows, without reading them."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.storage_errors import is_storage_error
from corpus.ingest.sources import file_names

ROWS_PER_SPLIT = 1 << 20
"""Maximum rows of a split of a parquet file, unless a single row group has more."""
TEXT_BYTES_PER_ROW = 50
"""Expected bytes of an interaction in an uncompressed text file."""
COMPRESSION_RATIO = 4
"""Expected size of a text file relative to its compressed size."""
BYTES_PER_SPLIT = 1 << 27
"""Bytes of a split of a file with one row per line."""


@dataclass(frozen=True)
class FileSplit:
    """A file, or a part of one, that one task reads.

    Attributes:
        file: URI of the file.
        row_groups: Row groups to read from a parquet file; None: all.
        byte_range: [start, stop) in a text file: the lines that begin there are read; None: all.
    """

    file: str
    row_groups: tuple[int, ...] | None = None
    byte_range: tuple[int, int] | None = None


def estimate_rows(file: str) -> int:
    """Returns the rows of a file: exact for parquet, from its footer, and estimated for text.

    A parquet file that cannot be read counts 0; reading it will report why.
    """
    if file.endswith(".parquet"):
        return sum(_row_group_sizes(file))
    text_bytes = _file_size(file) * (COMPRESSION_RATIO if file_names.compression(file) else 1)
    return text_bytes // TEXT_BYTES_PER_ROW


def split_file(file: str) -> list[FileSplit]:
    """Splits a file into parts that can be read independently, in the order of the file.

    Parquet is split between row groups, and text with a row per line at byte offsets. Any other
    file stays whole: a quoted field of csv may contain line breaks, and compressed text can only be
    read from its beginning.
    """
    if file.endswith(file_names.ROW_PER_LINE):
        return [
            FileSplit(file, byte_range=(start, start + BYTES_PER_SPLIT))
            for start in range(0, _file_size(file), BYTES_PER_SPLIT)
        ] or [FileSplit(file)]
    splits: list[list[int]] = []
    rows_in_split = 0
    for group, rows in enumerate(_row_group_sizes(file) if file.endswith(".parquet") else ()):
        if not splits or rows_in_split + rows > ROWS_PER_SPLIT:
            splits.append([])
            rows_in_split = 0
        splits[-1].append(group)
        rows_in_split += rows
    return [FileSplit(file, tuple(groups)) for groups in splits] or [FileSplit(file)]


def _file_size(file: str) -> int:
    fs, path = storage.filesystem(file)
    return int(fs.size(path))


def _row_group_sizes(file: str) -> list[int]:
    """Returns the rows of each row group of a parquet file; empty if the footer is damaged."""
    fs, path = storage.filesystem(file)
    try:
        with fs.open(path, "rb") as opened:
            footer = pq.ParquetFile(opened).metadata
            return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        if is_storage_error(error):
            raise
        return []

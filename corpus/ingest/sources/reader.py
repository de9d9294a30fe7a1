"""Reads files of any format into blocks of the requested columns, under our column names."""

from collections.abc import Iterator, Mapping

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources import parquet_files, text_files
from corpus.ingest.sources.block import Block
from corpus.ingest.sources.file_splits import FileSplit


def read_blocks(
    file_split: FileSplit, columns: Mapping[str, str], ticks_per_second: int
) -> Iterator[Block]:
    """Yields the rows of a file or of a part of one; parquet gives exactly one block.

    Args:
        file_split: The file, and which part of it to read.
        columns: Our column names to the file's.
        ticks_per_second: Ticks of the file's integer times in a second.

    Raises:
        DataError: The file is missing, empty, damaged, or lacks a column; the message names it.
    """
    file = file_split.file
    fs, path = storage.filesystem(file)
    try:
        if not fs.size(path):
            raise DataError(f"{file}: the file is empty (0 bytes); write it again")
        if file.endswith(".parquet"):
            yield parquet_files.read_block(file, columns, ticks_per_second, file_split.row_groups)
        else:
            yield from text_files.read_blocks(file, columns, file_split.byte_range)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file any more; put it back and start again") from None
    except IsADirectoryError:
        raise DataError(
            f"{file}: a folder, where a file was expected; "
            "move it out of the data root, or its files up"
        ) from None
    except PermissionError as error:
        raise DataError(f"{file}: may not be read ({error}); give access to it") from None


def is_json_lines(file: str) -> bool:
    """Returns whether a file has one JSON object per line, so that its fields are optional."""
    return file.removesuffix(".gz").endswith((".json", ".jsonl"))

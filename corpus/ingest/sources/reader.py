"""Reads files of any format into blocks of the requested columns, under our column names."""

from collections.abc import Iterator, Mapping

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources import file_names, parquet_files, text_files
from corpus.ingest.sources.block import EMPTY_FILE, Block, empty_block
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
        DataError: The file is missing, damaged, or lacks a column, or is parquet and empty; the
            message names it.
    """
    file = file_split.file
    fs, path = storage.filesystem(file)
    try:
        is_parquet = file.endswith(file_names.PARQUET)
        if not fs.size(path):
            if is_parquet:
                raise DataError(f"{file}: {EMPTY_FILE}; write it again")
            yield empty_block(columns)
        elif is_parquet:
            yield parquet_files.read_block(file, columns, ticks_per_second, file_split.row_groups)
        else:
            yield from text_files.read_blocks(
                file, columns, file_split.byte_range, ticks_per_second
            )
    except FileNotFoundError:
        raise DataError(f"{file}: no such file any more; put it back and start again") from None
    except IsADirectoryError:
        raise DataError(
            f"{file}: a folder, where a file was expected; "
            "move it out of the data root, or its files up"
        ) from None
    except PermissionError as error:
        raise DataError(f"{file}: may not be read ({error}); give access to it") from None

"""Files of behaviours to blocks of the columns that are wanted, under our names."""

from collections.abc import Iterator, Mapping

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources import parquet_files, text_files
from corpus.ingest.sources.block import Block
from corpus.ingest.sources.file_splits import FileSplit


def read_blocks(
    file_split: FileSplit, columns: Mapping[str, str], ticks_per_second: int
) -> Iterator[Block]:
    """The rows of a file, or of a piece of one. columns: our names to its own; ticks: of its times in a second.

    A parquet file is one block, or its row groups that are asked for are. Raises DataError naming the file.
    """
    fs, path = storage.filesystem(file_split.file)
    try:
        if not fs.size(path):
            raise DataError(f"{file_split.file}: the file is empty (0 bytes); write it again")
        if file_split.file.endswith(".parquet"):
            yield parquet_files.read_block(
                file_split.file, columns, ticks_per_second, file_split.row_groups
            )
        else:
            yield from text_files.read_blocks(file_split.file, columns, file_split.byte_range)
    except FileNotFoundError:
        raise DataError(
            f"{file_split.file}: no such file any more; put it back and start again"
        ) from None
    except IsADirectoryError:
        raise DataError(
            f"{file_split.file}: a folder, where a file was expected; move it out of the data root, or its files up"
        ) from None
    except PermissionError as error:
        raise DataError(
            f"{file_split.file}: may not be read ({error}); give access to it"
        ) from None


def is_json_lines(file: str) -> bool:
    """Whether a file has an object on every line, whose fields may be there or not."""
    return file.removesuffix(".gz").endswith((".json", ".jsonl"))

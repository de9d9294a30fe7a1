"""Files of behaviours to blocks of the columns that are wanted, under our names."""

from collections.abc import Iterator, Mapping

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources import lines, parquet
from corpus.ingest.sources.block import Block
from corpus.ingest.sources.file_splits import Piece


def blocks(piece: Piece, columns: Mapping[str, str], ticks: int) -> Iterator[Block]:
    """The rows of a file, or of a piece of one. columns: our names to its own; ticks: of its times in a second.

    A parquet file is one block, or its row groups that are asked for are. Raises DataError naming the file.
    """
    fs, path = storage.filesystem(piece.file)
    try:
        if not fs.size(path):
            raise DataError(f"{piece.file}: the file is empty (0 bytes); write it again")
        if piece.file.endswith(".parquet"):
            yield parquet.read(piece.file, columns, ticks, piece.groups)
        else:
            yield from lines.blocks(piece.file, columns, piece.span)
    except FileNotFoundError:
        raise DataError(
            f"{piece.file}: no such file any more; put it back and start again"
        ) from None
    except IsADirectoryError:
        raise DataError(
            f"{piece.file}: a folder, where a file was expected; move it out of the data root, or its files up"
        ) from None
    except PermissionError as error:
        raise DataError(f"{piece.file}: may not be read ({error}); give access to it") from None


def of_lines(file: str) -> bool:
    """Whether a file has an object on every line, whose fields may be there or not."""
    return file.removesuffix(".gz").endswith((".json", ".jsonl"))

"""Blocks: what every file reader returns, a few consecutive rows of a file under our column names.

Every error message names the file and the column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import DataError

IDS = "strings or integers"
TEXT = "strings"
TIME = "integers, whole numbers in double precision, timestamps, dates or ISO 8601 text"
NUMBER = "numbers"
COLUMN_KINDS = {"user_id": IDS, "item_id": IDS, "title": TEXT, "timestamp": TIME, "rating": NUMBER}
"""What each of our columns may contain in a file, as error messages say it."""
ARROW_TYPES = {
    IDS: pa.large_string(),
    TEXT: pa.large_string(),
    TIME: pa.int64(),
    NUMBER: pa.float64(),
}
"""The type that each kind of column is read as; times are integers in the file's unit."""

EMPTY_FILE = "the file is empty (0 bytes)"
"""The type of every column in a file of 0 bytes, and what error messages say of it."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file.

    Attributes:
        table: The requested columns [rows], of the types in `ARROW_TYPES`.
        file_types: For each column, its type in the file; of a dictionary, that of its values.
        malformed: Which rows could not be read [rows]; these are null in every column. None if all
            could be.
        unparsed_text: For the first few rows with unreadable text, that text: the whole line if the
            row is malformed, else a time that cannot be read and is therefore null in the table.
    """

    table: pa.Table
    file_types: Mapping[str, str]
    malformed: NDArray[np.bool_] | None = None
    unparsed_text: Mapping[int, str] = field(default_factory=dict)

    @property
    def columns_with_values(self) -> frozenset[str]:
        """The columns that have a value in at least one row; an unreadable time is a value."""
        has_unread_time = any(
            self.malformed is None or not self.malformed[row] for row in self.unparsed_text
        )
        return frozenset(
            name
            for name in self.table.column_names
            if self.table[name].null_count < self.table.num_rows
            or (name == "timestamp" and has_unread_time)
        )


def empty_block(columns: Mapping[str, str]) -> Block:
    """Returns the block of a file of 0 bytes, which Spark leaves of a part without rows."""
    schema = pa.schema([(name, ARROW_TYPES[COLUMN_KINDS[name]]) for name in columns])
    return Block(schema.empty_table(), dict.fromkeys(columns, EMPTY_FILE))


def require_columns(file: str, columns: Mapping[str, str], available: Sequence[str]) -> None:
    """Checks that a file has each of the columns to read, once.

    Args:
        file: The file, for the message.
        columns: Our column names to the file's.
        available: The columns that the file has.

    Raises:
        DataError: A column is missing, or there twice.
    """
    missing = [theirs for theirs in columns.values() if theirs not in available]
    if missing:
        raise DataError(
            f"{file}: no column {', '.join(missing)}; it has {', '.join(available)}; "
            "write it again, or name its columns in data.columns" + _partition_hint(file, missing)
        )
    twice = [theirs for theirs in columns.values() if available.count(theirs) > 1]
    if twice:
        raise DataError(
            f"{file}: column {', '.join(dict.fromkeys(twice))} is there more than once; "
            "rename one of them, or leave it out"
        )


def _partition_hint(file: str, missing: Sequence[str]) -> str:
    """Returns what to say if the folders of a file name one of its missing columns."""
    in_folders = [name for name in missing if f"/{name}=" in file]
    if not in_folders:
        return ""
    return f"; {', '.join(in_folders)} is in the name of a folder, where it is not read"

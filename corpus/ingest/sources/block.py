"""What every reader of files gives: some rows of a file, in its order, under our names. Every message names the file and the column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import DataError

IDS, TEXT, TIME, NUMBER = "strings or integers", "strings", "integers or timestamps", "numbers"
COLUMN_KINDS = {"user_id": IDS, "item_id": IDS, "title": TEXT, "timestamp": TIME, "rating": NUMBER}
"""What a column may hold, by our name for it."""
ARROW_TYPES = {
    IDS: pa.large_string(),
    TEXT: pa.large_string(),
    TIME: pa.int64(),
    NUMBER: pa.float64(),
}
"""What it is read as: ids and titles as text, times as integers in the file's unit, ratings as floats."""


@dataclass(frozen=True)
class Block:
    """Some rows of a file that follow each other.

    table: the wanted columns [n], of TYPES; types: theirs in the file; malformed: rows that could not be read [n], null in every column, or None
    where there is none; odd: by row, the first few of what could not be read, as it stands there: the line of a malformed one, else a time that is no
    number (null in the table).
    """

    table: pa.Table
    file_types: Mapping[str, str]
    malformed: NDArray[np.bool_] | None = None
    unparsed_text: Mapping[int, str] = field(default_factory=dict)

    @property
    def columns_with_values(self) -> frozenset[str]:
        """Columns that have a value in any row."""
        return frozenset(
            name
            for name in self.table.column_names
            if self.table[name].null_count < self.table.num_rows
        )


def require_columns(file: str, columns: Mapping[str, str], available: Sequence[str]) -> None:
    """Raises DataError unless a file has the columns, given as our names to its own."""
    missing = [theirs for theirs in columns.values() if theirs not in available]
    if missing:
        raise DataError(
            f"{file}: no column {', '.join(missing)}; it has {', '.join(available)}; write it again, or name its columns in data.columns"
        )

"""Checks the files of a domain as a whole: their types, their fields and their times.

A file is read in blocks; what these checks need of a block is in its summary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster.console import Say
from cluster.errors import DataError
from corpus.ingest.sources import block, file_names, layout
from corpus.ingest.sources.block import Block
from corpus.settings import DataSettings

_FIRST_YEARS_S = 100_000_000
"""End of the times that no platform of today has [Unix seconds]: March 1973."""
_FEW = 100
"""Among times of today, fewer than one in so many is from the first years."""


@dataclass(frozen=True)
class TimeCounts:
    """Counts of times.

    Attributes:
        known: Times that are not null.
        zero: Times that are 0.
        early: For each unit, positive times in the first years after 1970.
        calendar: Times whose digits are a date, such as 20170714 or 20170714024000.
    """

    known: int = 0
    zero: int = 0
    early: tuple[int, ...] = (0, 0, 0, 0)
    calendar: int = 0

    def __add__(self, other: "TimeCounts") -> "TimeCounts":
        """Returns the counts of the times of both."""
        return TimeCounts(
            self.known + other.known,
            self.zero + other.zero,
            tuple(a + b for a, b in zip(self.early, other.early, strict=True)),
            self.calendar + other.calendar,
        )

    @property
    def are_calendar_numbers(self) -> bool:
        """Whether there are times, and the digits of each are a date, such as 20170714.

        Hours, minutes and seconds may follow. Times that are null do not count.
        """
        return 0 < self.known == self.calendar

    def is_zero_missing(self, ticks_per_second: int) -> bool:
        """Tells whether 0 stands for no time: nearly all others are times of today."""
        others = self.known - self.zero
        early = self.early[_TICKS.index(ticks_per_second)]
        return self.zero > 0 and others > 0 and early * _FEW < others


_TICKS = (1, 1_000, 1_000_000, 1_000_000_000)


def count_times(times: pl.Series) -> TimeCounts:
    """Counts times (int64, null for none)."""
    known = times.drop_nulls().to_numpy()
    return TimeCounts(
        known.size,
        int((known == 0).sum()),
        tuple(int(((known > 0) & (known < _FIRST_YEARS_S * ticks)).sum()) for ticks in _TICKS),
        int(_is_calendar(known).sum()),
    )


def _is_calendar(times: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tests which numbers have the digits of a date, or of a date with hours to seconds."""
    has_clock = times >= 10**13
    clock = np.where(has_clock, times % 10**6, 0)
    day = np.where(has_clock, times // 10**6, times)
    return np.asarray(
        (day >= 1900_01_01)
        & (day <= 2100_12_31)
        & (day // 100 % 100 >= 1)
        & (day // 100 % 100 <= 12)
        & (day % 100 >= 1)
        & (day % 100 <= 31)
        & (clock < 24_00_00)
        & (clock // 100 % 100 < 60)
        & (clock % 100 < 60)
    )


@dataclass(frozen=True)
class BlockSummary:
    """What `check_files_agree` needs to know of a block.

    Attributes:
        file: The file of the block.
        file_types: For each column, its type in the file.
        columns_with_values: Columns that are not null in every row.
        rows: Number of rows.
        times: What kinds of times it has; None if it has no column of times.
    """

    file: str
    file_types: Mapping[str, str]
    columns_with_values: frozenset[str]
    rows: int
    times: TimeCounts | None = None


def summarize_block(file: str, file_block: Block) -> BlockSummary:
    """Returns the summary of a block for `check_files_agree`."""
    table = file_block.table
    return BlockSummary(
        file,
        file_block.file_types,
        file_block.columns_with_values,
        table.num_rows,
        count_times(pl.Series(table["timestamp"], dtype=pl.Int64))
        if "timestamp" in table.column_names
        else None,
    )


def check_files_agree(
    summaries: Sequence[BlockSummary], wanted_columns: Sequence[str], data: DataSettings, say: Say
) -> None:
    """Checks the files of a domain against each other, and JSON files for their fields.

    Args:
        summaries: Summaries of all blocks of all files, in order.
        wanted_columns: The columns that were read, by our names.
        data: Says what these columns are called in the files.
        say: Told if integer ids are read as text.

    Raises:
        DataError: Files disagree on whether a column is text, or no line of a JSON file has a
            field.
    """
    columns = layout.from_settings(data).columns
    empty = [s for s in summaries if block.EMPTY_FILE in s.file_types.values()]
    summaries = [summary for summary in summaries if summary not in empty]
    if not summaries:
        raise DataError(f"{empty[0].file}: {block.EMPTY_FILE}; write it again")
    for summary in empty:
        say(f"{summary.file}: {block.EMPTY_FILE}, so it adds nothing")
    first = summaries[0]
    for summary in summaries[1:]:
        for name in wanted_columns:
            if ("string" in first.file_types[name]) != ("string" in summary.file_types[name]):
                raise DataError(
                    f"{summary.file}: column {columns[name]} is {summary.file_types[name]}, "
                    f"yet {first.file_types[name]} in {first.file}; "
                    "give all files of a domain one type"
                )
    _check_fields(summaries, wanted_columns, columns)
    for file, times in _times_by_file(summaries).items():
        if times.are_calendar_numbers:
            raise DataError(
                f"{file}: every {columns['timestamp']} is a date written as one number, such as "
                "20170714, which would be read as a time in 1970; write it as 2017-07-14"
            )
    for name in wanted_columns:
        if block.COLUMN_KINDS[name] == block.IDS and "int" in first.file_types[name]:
            say(f"{first.file}: integers of column {columns[name]} are read as text")


def _check_fields(
    summaries: Sequence[BlockSummary], wanted_columns: Sequence[str], columns: Mapping[str, str]
) -> None:
    """Checks that some line of each JSON file has each field; raises DataError if not.

    Args:
        summaries: Summaries of all blocks of all files.
        wanted_columns: The columns that were read, by our names.
        columns: Our column names to the files'.
    """
    # A field may be missing from some lines of JSON; missing from all, its name must be wrong.
    json_files: dict[str, list[BlockSummary]] = {}
    for summary in summaries:
        if file_names.is_kind(summary.file, *file_names.JSON_LINES):
            json_files.setdefault(summary.file, []).append(summary)
    for file, file_summaries in json_files.items():
        if not sum(summary.rows for summary in file_summaries):
            raise DataError(
                f"{file}: holds no line of JSON; write it again with an object on every line, "
                "or correct data.format"
            )
        for name in wanted_columns:
            if not any(name in summary.columns_with_values for summary in file_summaries):
                raise DataError(
                    f"{file}: no line has a field {columns[name]}; "
                    "correct data.format, or data.columns"
                )


def _times_by_file(summaries: Iterable[BlockSummary]) -> dict[str, TimeCounts]:
    """Returns what kinds of times each file has."""
    by_file: dict[str, TimeCounts] = {}
    for summary in summaries:
        if summary.times is not None:
            by_file[summary.file] = by_file.get(summary.file, TimeCounts()) + summary.times
    return by_file


def is_zero_missing(summaries: Iterable[BlockSummary], ticks_per_second: int) -> bool:
    """Tells whether the time 0 stands for none in the files of a domain.

    It does among times of today, where only a missing value that was filled with 0 gives it. It
    does not where times count from an event, such as a first visit.

    Args:
        summaries: Summaries of all blocks of interactions.
        ticks_per_second: Ticks of a time in a second.
    """
    times = sum(_times_by_file(summaries).values(), TimeCounts())
    return times.is_zero_missing(ticks_per_second)

"""Counts of times by what they look like, from which a whole file or domain is judged."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

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

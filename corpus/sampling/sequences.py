"""From interactions to sequences, from sequences to targets with their histories (paper Sec. 4.3). Pure.

Sequences of many users lie flat in one frame, user by user and each in time order. A *window* is a target (a row) and the rows just before it.
Leave-one-out: the last interaction of a sequence is test, the one before validation, the rest training. What was held out once stays so in every
later version.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")


IS_NEW = pl.col("split").is_null()
"""Interactions that the version in the making brings; those of earlier versions have their split, as an index into SPLITS."""


def domain_sequences(interactions: pl.DataFrame) -> pl.DataFrame:
    """Every user's interactions domain by domain in time order; ties by item, so that the order is total.

    Columns user, item (numbers, in the order of names), domain, timestamp, version, split (null where new), ...; adds, within the sequence of
    (user, domain), `place` (0-based), `size`, and `number`: the place in the order of arrival (by version, then in time), which no later version can
    change. Splits are filled in, with `new` telling which were missing: leave-one-out over the whole sequence, but an interaction keeps its split.
    """
    ordered = interactions.sort("user", "domain", "timestamp", "item").with_columns(new=IS_NEW)
    placed = add_arrival_ranks(add_positions(ordered, "user", "domain"), "user", "domain")
    return placed.with_columns(
        split=pl.coalesce("split", (pl.col("place") - pl.col("size") + 3).clip(0, 2).cast(pl.Int8))
    )


def training_sequences(sequences: pl.DataFrame) -> pl.DataFrame:
    """Of what `domain_sequences` gave, the training interactions alone; `place` and `size` are then within these."""
    return add_positions(sequences.filter(pl.col("split") == 0), "user", "domain")


def mixed_sequences(sequences: pl.DataFrame, domains: Sequence[str]) -> pl.DataFrame:
    """Every user's *training* interactions of all `domains` in one time order; ties by domain, then item.

    Takes what `domain_sequences` gave; `place`, `size` and `number` are then within the user's mixed sequence.
    """
    training = sequences.filter(
        pl.col("domain").cast(pl.String).is_in(list(domains)), pl.col("split") == 0
    )
    return add_arrival_ranks(
        add_positions(training.sort("user", "timestamp", "domain", "item"), "user"), "user"
    )


def add_positions(rows: pl.DataFrame, *sequence_columns: str) -> pl.DataFrame:
    """Rows with `place` and `size` in their sequence, in the order that they have; the rows of a sequence follow each other."""
    begins = np.zeros(rows.height, bool)
    begins[:1] = True
    for name in sequence_columns:
        values = rows[name].to_physical().to_numpy()
        begins[1:] |= values[1:] != values[:-1]
    first = np.flatnonzero(begins)
    size = np.diff(np.append(first, rows.height))
    return rows.with_columns(
        place=np.arange(rows.height) - np.repeat(first, size), size=np.repeat(size, size)
    )


def add_arrival_ranks(rows: pl.DataFrame, *sequence_columns: str) -> pl.DataFrame:
    """Rows with `number`: their rank in their sequence by version, then place."""
    if rows["version"].n_unique() <= 1:
        return rows.with_columns(number="place")
    arrival = pl.col("version").cast(pl.Int64) * (1 << 40) + pl.col("place")
    return rows.with_columns(
        number=arrival.rank("ordinal").over(sequence_columns).cast(pl.Int64) - 1
    )


@dataclass(frozen=True)
class HistoryWindows:
    """Targets and the lengths of their histories: two int64 arrays [n]. Window i is rows target[i] - length[i] up to target[i] of the flat frame."""

    target: IntArray
    length: IntArray

    def histories(self, items: IntArray) -> pa.ListArray:
        """list<int64> [n]: the items before each target, oldest first."""
        ends = np.cumsum(self.length)
        first = self.target - self.length
        rows = np.repeat(first - (ends - self.length), self.length) + np.arange(
            ends[-1] if ends.size else 0
        )
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(items[rows], pa.int64()))

    def filter(self, mask: NDArray[np.bool_]) -> "HistoryWindows":
        """The windows that the mask [n] keeps."""
        return HistoryWindows(self.target[mask], self.length[mask])

    def filter_by_target_row(self, mask: NDArray[np.bool_]) -> "HistoryWindows":
        """The windows whose target is a row that the mask over the frame keeps."""
        return self.filter(mask[self.target])


def history_windows(position: IntArray, min_history: int, max_history: int) -> HistoryWindows:
    """One window for every row with at least `min_history` rows before it in its sequence; it holds the most recent `max_history` of them."""
    target = np.flatnonzero(position >= min_history)
    return HistoryWindows(target, np.minimum(position[target], max_history))


def filter_relevant_windows(
    windows: HistoryWindows,
    user: IntArray,
    domain: IntArray,
    min_domains: int,
    min_target_domain_items: int,
) -> tuple[HistoryWindows, Counter[str]]:
    """Keep the mixed windows that fit the paper's two construction guidelines, as we read them.

    1. the history spans at least `min_domains` domains (it shows cross-domain preference);
    2. it holds at least `min_target_domain` items of the target's own domain (it is relevant to the target).
    user, domain: codes of the rows of the mixed frame. Returns the windows kept and how many each rule dropped; one that breaks both counts for
    the first.
    """
    following = _next_row_of_same_domain(user, domain)
    spans = np.zeros(windows.target.size, np.int64)
    related = np.zeros(windows.target.size, np.int64)
    for back in range(1, int(windows.length.max(initial=0)) + 1):
        inside = back <= windows.length
        row = np.where(inside, windows.target - back, 0)
        # Each domain is counted once, where it occurs last in the history.
        spans += inside & (following[row] >= windows.target)
        related += inside & (domain[row] == domain[windows.target])
    cross, relevant = spans >= min_domains, related >= min_target_domain_items
    dropped = Counter(
        mixed_too_few_domains=int((~cross).sum()),
        mixed_too_few_of_target_domain=int((cross & ~relevant).sum()),
    )
    return windows.filter(cross & relevant), dropped


def _next_row_of_same_domain(user: IntArray, domain: IntArray) -> IntArray:
    """For each row, the next row of the same user and domain, or the number of rows if there is none."""
    following = np.full(user.size, user.size, np.int64)
    order = np.lexsort((domain, user))  # stable, so rows of one (user, domain) keep their order
    same = (user[order][1:] == user[order][:-1]) & (domain[order][1:] == domain[order][:-1])
    following[order[:-1][same]] = order[1:][same]
    return following

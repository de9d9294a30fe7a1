"""Turns interactions into sequences, and sequences into targets with histories. Pure.

The rules are those of the paper, Sec. 4.3. Sequences of many users are stored flat in one frame:
the rows of a sequence follow each other, in time order. A *window* is a target (a row) and the rows
just before it, its history. Leave-one-out: the last interaction of a sequence is test, the one
before it validation, the rest training. Whatever was once held out stays so in every later version.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

IS_NEW = pl.col("split").is_null()
"""Selects the interactions that the version being made adds; earlier ones have a split already."""


def domain_sequences(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sorts interactions into one sequence per user and domain, and assigns splits.

    A sequence is in time order; ties are ordered by item, so the order is total.

    Args:
        interactions: user and item (integers, in the order of ids), domain, timestamp, version and
            split (index into SPLITS, null for a new interaction); other columns are kept.

    Returns:
        The rows with these columns added or filled in:
        position: Place in the sequence, from 0.
        size: Length of the sequence.
        arrival_rank: Place in the sequence by version, then time; no later version can change it.
        new: Whether the split was missing.
        split: A missing one follows from leave-one-out over the whole sequence.
    """
    ordered = interactions.sort("user", "domain", "timestamp", "item").with_columns(new=IS_NEW)
    ranked = add_arrival_ranks(add_positions(ordered, "user", "domain"), "user", "domain")
    # The last position gets 2 (test), the one before it 1 (validation), all others 0 (train).
    leave_one_out = (pl.col("position") - pl.col("size") + 3).clip(0, 2).cast(pl.Int8)
    return ranked.with_columns(split=pl.coalesce("split", leave_one_out))


def training_sequences(sequences: pl.DataFrame) -> pl.DataFrame:
    """Returns the training rows of `domain_sequences`, with position and size among these rows."""
    return add_positions(sequences.filter(pl.col("split") == 0), "user", "domain")


def mixed_sequences(sequences: pl.DataFrame, domains: Sequence[str]) -> pl.DataFrame:
    """Merges each user's training interactions of several domains into one sequence.

    A sequence is in time order; ties are ordered by domain, then item.

    Args:
        sequences: Result of `domain_sequences`.
        domains: Domains to merge.

    Returns:
        The training rows; position, size and arrival_rank refer to the merged sequence.
    """
    training = sequences.filter(
        pl.col("domain").cast(pl.String).is_in(list(domains)), pl.col("split") == 0
    )
    return add_arrival_ranks(
        add_positions(training.sort("user", "timestamp", "domain", "item"), "user"), "user"
    )


def add_positions(rows: pl.DataFrame, *sequence_columns: str) -> pl.DataFrame:
    """Adds to each row its position in its sequence, and the size of that sequence.

    Args:
        rows: Rows in which those of one sequence follow each other.
        sequence_columns: Columns whose values together identify a sequence.
    """
    begins = np.zeros(rows.height, bool)
    begins[:1] = True
    for name in sequence_columns:
        values = rows[name].to_physical().to_numpy()
        begins[1:] |= values[1:] != values[:-1]
    first = np.flatnonzero(begins)
    size = np.diff(np.append(first, rows.height))
    return rows.with_columns(
        position=np.arange(rows.height) - np.repeat(first, size), size=np.repeat(size, size)
    )


def add_arrival_ranks(rows: pl.DataFrame, *sequence_columns: str) -> pl.DataFrame:
    """Adds arrival_rank: the rank of each row in its sequence by version, then position.

    Args:
        rows: Rows with their `position`.
        sequence_columns: Columns whose values together identify a sequence.
    """
    if rows["version"].n_unique() <= 1:
        return rows.with_columns(arrival_rank="position")
    arrival = pl.col("version").cast(pl.Int64) * (1 << 40) + pl.col("position")
    return rows.with_columns(
        arrival_rank=arrival.rank("ordinal").over(sequence_columns).cast(pl.Int64) - 1
    )


@dataclass(frozen=True)
class HistoryWindows:
    """Targets and the lengths of their histories, in a flat frame of sequences.

    The history of window i is rows target[i] - length[i] .. target[i] - 1.

    Attributes:
        target: Row of each target [n].
        length: Rows in each history [n].
    """

    target: IntArray
    length: IntArray

    def histories(self, items: IntArray) -> pa.ListArray:
        """Returns the items of each history, oldest first, as list<int64> [n].

        Args:
            items: Item of each row of the flat frame.
        """
        ends = np.cumsum(self.length)
        first = self.target - self.length
        # All histories one after another: a running number, moved to the first row of each.
        rows = np.repeat(first - (ends - self.length), self.length) + np.arange(
            ends[-1] if ends.size else 0
        )
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(items[rows], pa.int64()))

    def filter(self, mask: NDArray[np.bool_]) -> "HistoryWindows":
        """Returns the windows that a mask over windows selects."""
        return HistoryWindows(self.target[mask], self.length[mask])

    def filter_by_target_row(self, mask: NDArray[np.bool_]) -> "HistoryWindows":
        """Returns the windows whose target a mask over the rows of the flat frame selects."""
        return self.filter(mask[self.target])


def history_windows(position: IntArray, min_history: int, max_history: int) -> HistoryWindows:
    """Makes a window for every row that has enough rows before it in its sequence.

    Args:
        position: Position of each row in its sequence.
        min_history: Rows that must precede a target.
        max_history: Rows in a history at most; the most recent ones are taken.
    """
    target = np.flatnonzero(position >= min_history)
    return HistoryWindows(target, np.minimum(position[target], max_history))


def filter_relevant_windows(
    windows: HistoryWindows,
    user: IntArray,
    domain: IntArray,
    min_domains: int,
    min_target_domain_items: int,
) -> tuple[HistoryWindows, Counter[str]]:
    """Selects the mixed windows that follow the paper's two guidelines, as we read them.

    1. The history spans at least `min_domains` domains: it shows cross-domain preference.
    2. It has at least `min_target_domain_items` items of the target's own domain: it is relevant.

    Args:
        windows: Windows into the mixed sequences.
        user: User of each row of the mixed sequences.
        domain: Domain of each row, as an integer.
        min_domains: Domains that a history must span.
        min_target_domain_items: Items of the target's domain that a history must have.

    Returns:
        The selected windows.
        Dropped windows by rule; one that breaks both rules counts for the first.
    """
    next_row = _next_row_of_same_domain(user, domain)
    num_domains = np.zeros(windows.target.size, np.int64)
    num_related = np.zeros(windows.target.size, np.int64)
    # Walks back through all histories at once, one row per step.
    for steps_back in range(1, int(windows.length.max(initial=0)) + 1):
        inside = steps_back <= windows.length
        row = np.where(inside, windows.target - steps_back, 0)
        # Each domain is counted once, at its last row in the history.
        num_domains += inside & (next_row[row] >= windows.target)
        num_related += inside & (domain[row] == domain[windows.target])
    spans_domains = num_domains >= min_domains
    is_related = num_related >= min_target_domain_items
    dropped = Counter(
        mixed_too_few_domains=int((~spans_domains).sum()),
        mixed_too_few_of_target_domain=int((spans_domains & ~is_related).sum()),
    )
    return windows.filter(spans_domains & is_related), dropped


def _next_row_of_same_domain(user: IntArray, domain: IntArray) -> IntArray:
    """Returns for each row the next row of its user and domain; the number of rows if none."""
    next_row = np.full(user.size, user.size, np.int64)
    order = np.lexsort((domain, user))  # stable, so rows of one (user, domain) keep their order
    same = (user[order][1:] == user[order][:-1]) & (domain[order][1:] == domain[order][:-1])
    next_row[order[:-1][same]] = order[1:][same]
    return next_row

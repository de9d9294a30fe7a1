"""Candidates for histories out of a whole catalogue: the interface, and how sources are blended.

Items are given by their index in the corpus's catalogue everywhere. Pure numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.int64]
Histories = Sequence[Sequence[int]]

NO_ITEM = -1
"""Fills up the row of a source that has nothing more to offer."""


class CandidateSource(Protocol):
    """Finds candidates for histories."""

    def find(self, histories: Histories, k: int) -> Items:
        """Finds the best candidates for each history.

        Args:
            histories: Items of each history, oldest first [n].
            k: Candidates of a history.

        Returns:
            Items [n, k], best first, without repeats. A source that does not know a history, or
            that knows too few items, fills its rows up with `NO_ITEM`; `Blend` never does.
        """


@dataclass(frozen=True)
class Blend:
    """Sources that take turns, with a floor that fills up what they leave.

    The first row of each source comes first, then the second of each, and so on; a repeat is
    skipped. So every source contributes equally, whatever its scores mean.

    Attributes:
        sources: The sources, in the order of their turns.
        floor: All items of the catalogue [items], best first: by popularity.
        exclude_history: Whether items of the history come last, after all others.
    """

    sources: Sequence[CandidateSource]
    floor: Items
    exclude_history: bool = True

    def find(self, histories: Histories, k: int) -> Items:
        """Finds the best candidates for each history [n, min(k, items)], all of them items."""
        k = min(k, len(self.floor))
        excluded = histories if self.exclude_history else [()] * len(histories)
        # As many as suffice if the history takes some of them away.
        depth = min(k + _longest(excluded), len(self.floor))
        parts = [np.tile(self.floor[:depth], (len(histories), 1))]
        if self.sources:
            found = np.stack([source.find(histories, depth) for source in self.sources], axis=2)
            parts.insert(0, found.reshape(len(histories), -1))
        return take_first(np.concatenate(parts, axis=1), excluded, k)


def take_first(rows: Items, excluded: Histories, k: int) -> Items:
    """Takes the first k different items of each row; those to be excluded only where others end.

    Args:
        rows: Items [n, columns], best first; `NO_ITEM` stands for none.
        excluded: Items of each row that come last [n].
        k: Items to take.

    Returns:
        Items [n, k], filled up with `NO_ITEM`.
    """
    if rows.shape[1] < k:
        rows = np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=NO_ITEM)
    # An item's first place in its row: a stable sort keeps equal items in the order of the row.
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    repeats = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(repeats, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    last = _contains(rows, excluded)
    rows = np.where(repeats, NO_ITEM, rows)
    priority = np.where(rows == NO_ITEM, 2, last.astype(int))
    return np.take_along_axis(rows, np.argsort(priority, axis=1, kind="stable")[:, :k], axis=1)


def _contains(rows: Items, items: Histories) -> NDArray[np.bool_]:
    """Returns which entries of each row are among that row's items [n, columns]."""
    mask = np.zeros(rows.shape, dtype=bool)
    for place in range(_longest(items)):
        column = np.array([row[place] if place < len(row) else NO_ITEM for row in items])
        mask |= rows == column[:, None]
    return mask


def _longest(histories: Histories) -> int:
    """Returns the length of the longest history; 0 without any."""
    return max(map(len, histories), default=0)

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
POOL = 500
"""Items of each source that are fused: the same for every k, so that a larger k only adds."""
FUSION_CONSTANT = 60
"""Constant of reciprocal rank fusion, as its authors have it."""
BLOCK_ROWS = 2048
"""Histories for which candidates are found at a time."""


class CandidateSource(Protocol):
    """Finds candidates for histories."""

    def find(self, histories: Histories, k: int) -> Items:
        """Finds the best candidates for each history.

        Args:
            histories: Items of each history, oldest first [n].
            k: Candidates of a history.

        Returns:
            Items [n, k], best first, without repeats. A source that does not know a history, or
            that knows too few items, fills its rows up with `NO_ITEM`; `FusedSource` never does.
        """


@dataclass(frozen=True)
class FusedSource:
    """Sources whose rankings are fused, and a fallback for the places that they leave.

    An item scores the sum of 1 / (60 + its rank) over the sources that name it (reciprocal rank
    fusion, Cormack et al. 2009). So every source contributes, whatever its scores mean, and what
    several of them name comes first. A source that is given twice counts twice.

    Attributes:
        sources: The sources.
        fallback: All items of the catalogue [items], best first: by popularity.
        exclude_history: Whether items of the history come last, after all others.
    """

    sources: Sequence[CandidateSource]
    fallback: Items
    exclude_history: bool = True

    def find(self, histories: Histories, k: int) -> Items:
        """Finds the best candidates for each history [n, min(k, items)], all of them items.

        The candidates for a smaller k are the first of those for a larger one.
        """
        k = min(k, len(self.fallback))
        blocks = [
            self._find_block(histories[start : start + BLOCK_ROWS], k)
            for start in range(0, max(len(histories), 1), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)

    def _find_block(self, histories: Histories, k: int) -> Items:
        """Finds the best candidates for some histories."""
        excluded = histories if self.exclude_history else [()] * len(histories)
        # As many as suffice if the history takes some of them away.
        parts = [np.tile(self.fallback[: k + _longest(excluded)], (len(histories), 1))]
        if self.sources:
            parts.insert(0, fuse([source.find(histories, POOL) for source in self.sources]))
        return take_first(np.concatenate(parts, axis=1), excluded, k)


def in_item_order(found: Items, histories: Histories, exclude_history: bool) -> list[list[int]]:
    """Sorts the items found for each history by their numbers, the order that prompts use.

    So the place of an item in the prompt does not tell where retrieval put it.

    Args:
        found: Items [n, k]; `NO_ITEM` stands for none.
        histories: Items of each history [n].
        exclude_history: Whether items of the history are left out.
    """
    return [
        sorted(set(items) - {NO_ITEM, *(history if exclude_history else ())})
        for items, history in zip(found.tolist(), histories, strict=True)
    ]


def fuse(rankings: Sequence[Items]) -> Items:
    """Fuses rankings by the sum of their items' reciprocal ranks.

    Args:
        rankings: Items [n, columns] of each source, at least one, best first; `NO_ITEM` stands
            for none.

    Returns:
        Items [n, columns of all], best first, ties in the order of the items. `NO_ITEM` comes last.
    """
    ranks = np.concatenate([np.arange(ranking.shape[1]) for ranking in rankings])
    items = np.concatenate(rankings, axis=1)
    order = np.argsort(items, axis=1, kind="stable")
    items = np.take_along_axis(items, order, axis=1)
    terms = 1 / (FUSION_CONSTANT + 1 + ranks[order])
    # Equal items stand side by side, at most one of each source: the first takes all their terms.
    totals = terms.copy()
    for distance in range(1, len(rankings)):
        same = items[:, distance:] == items[:, :-distance]
        totals[:, :-distance] += np.where(same, terms[:, distance:], 0)
    repeats = np.zeros(items.shape, dtype=bool)
    repeats[:, 1:] = items[:, 1:] == items[:, :-1]
    items = np.where(repeats, NO_ITEM, items)
    totals[items == NO_ITEM] = 0
    # Sums of equal parts in different orders are equal only so.
    totals = totals.round(12)
    return np.take_along_axis(items, np.argsort(-totals, axis=1, kind="stable"), axis=1)


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

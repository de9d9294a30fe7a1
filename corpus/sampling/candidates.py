"""Candidates of a sample: the target and items of its domain that the user never interacted with, in any split. Pure.

Draw d for a target is a hash of (seed, user, target, d): there is no generator whose state could depend on order, so the same target has the
same candidates in whatever block, process or machine it is made.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from corpus.sampling.hashing import Hashes, hash_integers

IntArray = NDArray[np.int64]

_TARGET_POSITION_DRAW = 0xFFFF_FFFF
"""Draw number of the target's place: beyond any number of draws of items."""
_BLOCK_ROWS = 1 << 12
"""Rows drawn at a time: what is needed in between stays in the processor's cache."""
_FILTER_BITS_PER_KEY = 8
"""Marks for each interaction: so most draws are told from interactions by one look. At most 2^22 in all, for the processor's cache."""
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class InteractedItems:
    """Which items of one domain each user interacted with: sorted keys user * size + item; items are numbered 0 .. size - 1 within the domain.

    marks: by a hash of the key, whether there can be one. Most draws are told from interactions by a look at it.
    """

    keys: IntArray
    num_items: int
    bloom_filter: NDArray[np.bool_]

    @classmethod
    def from_interactions(cls, user: IntArray, item: IntArray, num_items: int) -> "InteractedItems":
        """user, item: [n], one entry for each interaction; `size` items in the domain."""
        keys = np.sort(user * num_items + item)
        keys = keys[np.diff(keys, prepend=-1) > 0]
        marks = np.zeros(
            1 << min(max((_FILTER_BITS_PER_KEY * keys.size).bit_length(), 1), 22), bool
        )
        marks[_filter_slots(keys, marks)] = True
        return cls(keys, num_items, marks)

    def contains(self, user: IntArray, item: IntArray) -> NDArray[np.bool_]:
        """Whether each (user, item) is an interaction."""
        key = user * self.num_items + item
        found = self.bloom_filter[_filter_slots(key, self.bloom_filter)]
        possible = key[found]
        if possible.size:
            found[found] = (
                self.keys[np.minimum(np.searchsorted(self.keys, possible), self.keys.size - 1)]
                == possible
            )
        return found

    def min_remaining_items(self) -> int:
        """Items that the busiest user never interacted with."""
        if not self.keys.size:
            return self.num_items
        first = np.flatnonzero(np.diff(self.keys // self.num_items, prepend=-1))
        return self.num_items - int(np.diff(first, append=self.keys.size).max())


def draw_candidates(
    key: Hashes, user: IntArray, target: IntArray, interacted: InteractedItems, num_candidates: int
) -> tuple[IntArray, NDArray[np.int8]]:
    """Candidates [n, count] as item numbers within the domain, and the target's place among them [n].

    key: hash of (seed, user, target) [n]; user: code [n]; target: item number [n].
    Raises ValueError unless every user left at least count - 1 items: the draws would never end.
    """
    if key.size and interacted.min_remaining_items() < num_candidates - 1:
        raise ValueError(
            f"a user left {interacted.min_remaining_items()} items of {interacted.num_items}; {num_candidates - 1} negatives cannot be drawn"
        )
    drawn, refused = np.empty((key.size, num_candidates), np.int64), np.zeros(key.size, bool)
    for start in range(0, key.size, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        drawn[rows, :-1], refused[rows] = _draw_once(
            key[rows], user[rows], interacted, num_candidates - 1
        )
    again = np.flatnonzero(refused)
    for start in range(0, again.size, _BLOCK_ROWS):
        rows_again = again[start : start + _BLOCK_ROWS]
        drawn[rows_again, :-1] = _draw_with_rejection(
            key[rows_again], user[rows_again], interacted, num_candidates - 1
        )
    place = (hash_integers(key, _TARGET_POSITION_DRAW) % np.uint64(num_candidates)).astype(np.int64)
    row = np.arange(key.size)
    # Negatives come in random order, so putting the target in a random place shuffles the whole.
    drawn[row, -1] = drawn[row, place]
    drawn[row, place] = target
    return drawn, place.astype(np.int8)


def _filter_slots(keys: IntArray, bloom_filter: NDArray[np.bool_]) -> Hashes:
    """Where the keys have their marks; marks: a power of two of them, at least 2."""
    return (keys.view(np.uint64) * _HASH_MULTIPLIER) >> np.uint64(
        65 - bloom_filter.size.bit_length()
    )


def _draw_once(
    key: Hashes, user: IntArray, interacted: InteractedItems, count: int
) -> tuple[IntArray, NDArray[np.bool_]]:
    """The first draws [n, count], and the rows [n] in which one is refused. In all others they are what `_one_by_one` gives."""
    item = _draw_items(key[:, None], np.arange(count), interacted.num_items)
    ordered = np.sort(item, axis=1)
    return item, (ordered[:, 1:] == ordered[:, :-1]).any(axis=1) | interacted.contains(
        user[:, None], item
    ).any(axis=1)


def _draw_with_rejection(
    key: Hashes, user: IntArray, interacted: InteractedItems, count: int
) -> IntArray:
    """Distinct items [n, count] that the users never interacted with: draws in turn, refused when interacted with or drawn before."""
    chosen = np.full((key.size, count), -1, np.int64)
    filled = np.zeros(key.size, np.int64)
    open_rows, number = np.arange(key.size), 0
    while open_rows.size:
        item = _draw_items(key[open_rows], number, interacted.num_items)
        fresh = ~interacted.contains(user[open_rows], item) & ~(
            chosen[open_rows] == item[:, None]
        ).any(axis=1)
        taken = open_rows[fresh]
        chosen[taken, filled[taken]] = item[fresh]
        filled[taken] += 1
        open_rows, number = open_rows[filled[open_rows] < count], number + 1
    return chosen


def _draw_items(key: Hashes, number: ArrayLike, size: int) -> IntArray:
    """Draw so-and-so of each target among `size` items; keys and numbers broadcast together."""
    return (hash_integers(key, number) % np.uint64(size)).astype(np.int64)

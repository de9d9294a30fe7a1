"""Candidates of a sample: the target and items of its domain that the user never interacted with, in any split. Pure.

Draw d for a target is a hash of (seed, user, target, d): there is no generator whose state could depend on order, so the same target has the
same candidates in whatever block, process or machine it is made.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corpus.hashing import Hash, combine

Ints = NDArray[np.int64]

_PLACE = 0xFFFF_FFFF
"""Draw number of the target's place: beyond any number of draws of items."""
_ROWS = 1 << 17
"""Rows drawn at a time, which bounds memory."""


@dataclass(frozen=True)
class Interacted:
    """Which items of one domain each user interacted with: sorted keys user * size + item; items are numbered 0 .. size - 1 within the domain."""

    keys: Ints
    size: int

    @classmethod
    def of(cls, user: Ints, item: Ints, size: int) -> "Interacted":
        """user, item: [n], one entry for each interaction; `size` items in the domain."""
        return cls(np.unique(user * size + item), size)

    def has(self, user: Ints, item: Ints) -> NDArray[np.bool_]:
        """Whether each (user, item) is an interaction."""
        key = user * self.size + item
        at = np.searchsorted(self.keys, key)
        return self.keys[np.minimum(at, self.keys.size - 1)] == key if self.keys.size else np.zeros(key.shape, bool)

    def fewest_left(self) -> int:
        """Items that the busiest user never interacted with."""
        busiest = np.unique(self.keys // self.size, return_counts=True)[1].max(initial=0) if self.size else 0
        return self.size - int(busiest)


def draw(key: Hash, user: Ints, target: Ints, interacted: Interacted, count: int) -> tuple[Ints, NDArray[np.int8]]:
    """Candidates [n, count] as item numbers within the domain, and the target's place among them [n].

    key: hash of (seed, user, target) [n]; user: code [n]; target: item number [n].
    Raises ValueError unless every user left at least count - 1 items: the draws would never end.
    """
    if key.size and interacted.fewest_left() < count - 1:
        raise ValueError(f"a user left {interacted.fewest_left()} items of {interacted.size}; {count - 1} negatives cannot be drawn")
    drawn = np.empty((key.size, count), np.int64)
    for start in range(0, key.size, _ROWS):
        rows = slice(start, start + _ROWS)
        drawn[rows, :-1] = _negatives(key[rows], user[rows], interacted, count - 1)
    place = (combine(key, _PLACE) % np.uint64(count)).astype(np.int64)
    row = np.arange(key.size)
    # Negatives come in random order, so putting the target in a random place shuffles the whole.
    drawn[row, -1] = drawn[row, place]
    drawn[row, place] = target
    return drawn, place.astype(np.int8)


def _negatives(key: Hash, user: Ints, interacted: Interacted, count: int) -> Ints:
    """Distinct items [n, count] that the users never interacted with: draws in turn, refused when interacted with or drawn before."""
    chosen = np.full((key.size, count), -1, np.int64)
    filled = np.zeros(key.size, np.int64)
    open_rows, number = np.arange(key.size), 0
    while open_rows.size:
        item = (combine(key[open_rows], number) % np.uint64(interacted.size)).astype(np.int64)
        fresh = ~interacted.has(user[open_rows], item) & ~(chosen[open_rows] == item[:, None]).any(axis=1)
        taken = open_rows[fresh]
        chosen[taken, filled[taken]] = item[fresh]
        filled[taken] += 1
        open_rows, number = open_rows[filled[open_rows] < count], number + 1
    return chosen

"""Draws the candidates of samples. Pure.

The candidates of a sample are its target and items of the target's domain that the user never
interacted with, in any split. Draw d for a target is a hash of (seed, user, target, d), so there
is no generator whose state could depend on order: a target has the same candidates in whatever
block, process or machine they are drawn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from corpus.sampling.hashing import Hashes, hash_integers

IntArray = NDArray[np.int64]

_TARGET_POSITION_DRAW = 0xFFFF_FFFF
"""Draw number that decides the target's position; larger than the number of any item draw."""

MAX_DRAWS = 1024
"""Draws for a target, after which the rest of its candidates are chosen without rejection.

So few only matter to users who know nearly all items of a domain, for whom most draws are rejected.
"""

_CHOICE_OFFSET = 1 << 40
"""What is added to an item's number to hash it, so that no hash is that of a draw."""

_BLOCK_ROWS = 1 << 12
"""Rows drawn together, few enough for intermediate arrays to stay in the processor's cache."""

_FILTER_BITS_PER_KEY = 8
"""Entries of the Bloom filter for each interaction, which let most draws pass after one lookup."""

_MAX_FILTER_BITS = 22
"""Base-2 logarithm of the largest Bloom filter, which still fits the processor's cache."""

_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class InteractedItems:
    """The set of (user, item) pairs that interacted in one domain.

    Items are numbered 0 .. num_items - 1 within the domain.

    Attributes:
        keys: user * num_items + item of each pair, ascending and unique.
        num_items: Number of items in the domain.
        bloom_filter: By a hash of the key, whether `keys` may contain it [power of two].
    """

    keys: IntArray
    num_items: int
    bloom_filter: NDArray[np.bool_]

    @classmethod
    def from_interactions(cls, user: IntArray, item: IntArray, num_items: int) -> "InteractedItems":
        """Builds the set from interactions, among which pairs may repeat.

        Args:
            user: User of each interaction [n].
            item: Item of each interaction, numbered within the domain [n].
            num_items: Number of items in the domain.
        """
        keys = np.sort(user * num_items + item)
        keys = keys[np.diff(keys, prepend=-1) > 0]
        filter_bits = max((_FILTER_BITS_PER_KEY * keys.size).bit_length(), 1)
        bloom_filter = np.zeros(1 << min(filter_bits, _MAX_FILTER_BITS), bool)
        bloom_filter[_filter_slots(keys, bloom_filter)] = True
        return cls(keys, num_items, bloom_filter)

    def contains(self, user: IntArray, item: IntArray) -> NDArray[np.bool_]:
        """Tells for each (user, item), which broadcast together, whether the set contains it."""
        key = user * self.num_items + item
        present = self.bloom_filter[_filter_slots(key, self.bloom_filter)]
        possible = key[present]
        if possible.size:
            # The filter has false positives: only keys that pass it are searched for.
            nearest = np.minimum(np.searchsorted(self.keys, possible), self.keys.size - 1)
            present[present] = self.keys[nearest] == possible
        return present

    def remaining_items(self, user: int) -> IntArray:
        """Returns the items that a user has not interacted with, ascending."""
        first, last = np.searchsorted(
            self.keys, [user * self.num_items, (user + 1) * self.num_items]
        )
        return np.setdiff1d(
            np.arange(self.num_items), self.keys[first:last] - user * self.num_items
        )

    def min_remaining_items(self) -> int:
        """Returns the smallest number of items that any user has not interacted with."""
        if not self.keys.size:
            return self.num_items
        first = np.flatnonzero(np.diff(self.keys // self.num_items, prepend=-1))
        return self.num_items - int(np.diff(first, append=self.keys.size).max())


def draw_candidates(
    key: Hashes, user: IntArray, target: IntArray, interacted: InteractedItems, num_candidates: int
) -> tuple[IntArray, NDArray[np.int8]]:
    """Draws the candidates of targets of one domain.

    Args:
        key: Hash of (seed, user, target) [n].
        user: User of each target, as in `interacted` [n].
        target: Item of each target, numbered within the domain [n].
        interacted: What each user interacted with; includes the targets.
        num_candidates: Candidates of a target, itself included.

    Returns:
        Candidates, numbered within the domain [n, num_candidates].
        Position of the target among its candidates [n].

    Raises:
        ValueError: A user has fewer than num_candidates - 1 items that they never interacted with,
            so draws would never end.
    """
    num_negatives = num_candidates - 1
    if key.size and (remaining := interacted.min_remaining_items()) < num_negatives:
        raise ValueError(
            f"a user interacted with all but {remaining} items of {interacted.num_items}; "
            f"{num_negatives} negatives cannot be drawn"
        )
    drawn = np.empty((key.size, num_candidates), np.int64)
    rejected = np.zeros(key.size, bool)
    for start in range(0, key.size, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        drawn[rows, :-1], rejected[rows] = _draw_once(
            key[rows], user[rows], interacted, num_negatives
        )
    # Rows with a rejected draw are few; they are drawn again, one draw at a time.
    redrawn = np.flatnonzero(rejected)
    for start in range(0, redrawn.size, _BLOCK_ROWS):
        block = redrawn[start : start + _BLOCK_ROWS]
        drawn[block, :-1] = _draw_with_rejection(key[block], user[block], interacted, num_negatives)
    position_hashes = hash_integers(key, _TARGET_POSITION_DRAW)
    position = (position_hashes % np.uint64(num_candidates)).astype(np.int64)
    row = np.arange(key.size)
    # Negatives are in random order, so a random position for the target shuffles all candidates.
    drawn[row, -1] = drawn[row, position]
    drawn[row, position] = target
    return drawn, position.astype(np.int8)


def _filter_slots(keys: IntArray, bloom_filter: NDArray[np.bool_]) -> Hashes:
    """Returns the slot of each key in a Bloom filter whose size is a power of two, at least 2."""
    shift = np.uint64(65 - bloom_filter.size.bit_length())
    return (keys.view(np.uint64) * _HASH_MULTIPLIER) >> shift


def _draw_once(
    key: Hashes, user: IntArray, interacted: InteractedItems, count: int
) -> tuple[IntArray, NDArray[np.bool_]]:
    """Makes the first draws [n, count] and tells which rows have one that must be rejected [n].

    The other rows equal those of `_draw_with_rejection`.
    """
    item = _draw_items(key[:, None], np.arange(count), interacted.num_items)
    ordered = np.sort(item, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return item, repeated | interacted.contains(user[:, None], item).any(axis=1)


def _draw_with_rejection(
    key: Hashes, user: IntArray, interacted: InteractedItems, count: int
) -> IntArray:
    """Draws distinct items that the users never interacted with [n, count].

    Draws are made in order; one is rejected if the user interacted with its item or if an earlier
    draw took it. What MAX_DRAWS leave open is filled from the items that remain, in the order of
    their hashes.
    """
    chosen = np.full((key.size, count), -1, np.int64)
    num_chosen = np.zeros(key.size, np.int64)
    open_rows = np.arange(key.size)
    draw_number = 0
    while open_rows.size and draw_number < MAX_DRAWS:
        item = _draw_items(key[open_rows], draw_number, interacted.num_items)
        repeated = (chosen[open_rows] == item[:, None]).any(axis=1)
        accepted = ~interacted.contains(user[open_rows], item) & ~repeated
        rows = open_rows[accepted]
        chosen[rows, num_chosen[rows]] = item[accepted]
        num_chosen[rows] += 1
        open_rows = open_rows[num_chosen[open_rows] < count]
        draw_number += 1
    for one_user in np.unique(user[open_rows]):
        rows = open_rows[user[open_rows] == one_user]
        items = interacted.remaining_items(one_user)
        hashes = hash_integers(key[rows, None], _CHOICE_OFFSET + items)
        for row, order in zip(rows, np.argsort(hashes, axis=1, kind="stable"), strict=True):
            already = chosen[row, : num_chosen[row]]
            free = items[order][~np.isin(items[order], already)]
            chosen[row, num_chosen[row] :] = free[: count - num_chosen[row]]
    return chosen


def _draw_items(key: Hashes, draw_number: ArrayLike, num_items: int) -> IntArray:
    """Returns the item of a draw for each key; keys and draw numbers broadcast together."""
    return (hash_integers(key, draw_number) % np.uint64(num_items)).astype(np.int64)

"""Hashes that never change, whatever the machine, the process or the version of a library.

Sample ids and drawn candidates are functions of these hashes. So neither depends on the order in
which rows are made, or on where.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

Hashes = NDArray[np.uint64]

# Constants of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

MEMBER_BITS = 24
"""Low bits of a member id, which tell members of one group apart; the bits above identify it."""


def hash_strings(values: Iterable[str]) -> Hashes:
    """Returns the 64-bit blake2b hash of each string's UTF-8 bytes, uint64 [n]."""
    return np.fromiter(
        (int.from_bytes(blake2b(v.encode(), digest_size=8).digest(), "little") for v in values),
        np.uint64,
    )


def splitmix64(values: Hashes) -> Hashes:
    """Applies splitmix64: a bijection on 64 bits that maps consecutive inputs to unrelated outputs.

    Returns:
        uint64, in the shape of the input.
    """
    z = values + _GOLDEN_GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MULTIPLIER_1
    z = (z ^ (z >> np.uint64(27))) * _MULTIPLIER_2
    return z ^ (z >> np.uint64(31))


def hash_integers(*parts: ArrayLike) -> Hashes:
    """Hashes tuples of integers; the order of the parts matters.

    Args:
        parts: Non-negative integers, as scalars and arrays that broadcast together.

    Returns:
        uint64, in the broadcast shape, with at least one dimension.
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state ^ np.asarray(part).astype(np.uint64))
    return state


def member_ids(group_hashes: Hashes, numbers: NDArray[np.int64]) -> Hashes:
    """Returns ids that keep the members of a group next to each other when ids are sorted.

    The high 40 bits are those of the group's hash. The low 24 bits count up from a start that is
    taken from the same hash. Among ten million groups about 45 pairs share their high 40 bits;
    their members still get different ids, because the two groups count from different starts.

    Args:
        group_hashes: Hash of each member's group [n].
        numbers: Number of each member, below 2^24 and unique within its group [n].
    """
    low = np.uint64((1 << MEMBER_BITS) - 1)
    return (group_hashes & ~low) | ((group_hashes + numbers.astype(np.uint64)) & low)


def group_bits(ids: Hashes) -> Hashes:
    """Returns the bits that all `member_ids` of a group share [n]."""
    return ids >> np.uint64(MEMBER_BITS)


def hash_range_indices(hashes: Hashes, num_ranges: int) -> NDArray[np.int64]:
    """Returns the index of the range that each hash is in [n].

    Ranges have equal width and ascend with the hashes, so hashes fill them evenly.

    Args:
        hashes: Hashes [n].
        num_ranges: Number of ranges that the 64-bit space is divided into, a power of two.
    """
    bits = num_ranges.bit_length() - 1
    # Two shifts: for one range a single shift would be by 64 bits, which numpy does not define.
    return (hashes >> np.uint64(32) >> np.uint64(32 - bits)).astype(np.int64)

"""Hashes that never change: the same number on every machine, in every process, with every version of every library.

Identities of samples and drawn candidates are functions of these, so neither depends on the order or the place in which rows are made.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

Hashes = NDArray[np.uint64]

_GOLDEN_GAMMA, _MULTIPLIER_1, _MULTIPLIER_2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


def hash_strings(values: Iterable[str]) -> Hashes:
    """blake2b of each string's UTF-8, 64 bits: uint64 [n]."""
    return np.fromiter(
        (int.from_bytes(blake2b(v.encode(), digest_size=8).digest(), "little") for v in values),
        np.uint64,
    )


def splitmix64(values: Hashes) -> Hashes:
    """splitmix64, a bijection of 64 bits whose outputs for consecutive inputs look independent. uint64 [...] to the same shape."""
    z = values + _GOLDEN_GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MULTIPLIER_1
    z = (z ^ (z >> np.uint64(27))) * _MULTIPLIER_2
    return z ^ (z >> np.uint64(31))


def hash_integers(*parts: ArrayLike) -> Hashes:
    """One hash of several integers, their order counts. Arrays and scalars of at least 0 that broadcast together; uint64 [n]."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state ^ np.asarray(part).astype(np.uint64))
    return state


MEMBER_BITS = 24
"""Bits of an identity that tell the members of a group apart; those above are the group's."""


def member_ids(group_hashes: Hashes, numbers: NDArray[np.int64]) -> Hashes:
    """Identities of members of groups, of which those of one group follow each other in the order of their numbers. uint64 [n].

    groups: hashes [n]; numbers: below 2^24 and different within a group. Where 40 bits of two groups agree, which ten million groups let expect 45
    times, the other 24 still keep their members apart: they count from a place that is the group's own.
    """
    low = np.uint64((1 << MEMBER_BITS) - 1)
    return (group_hashes & ~low) | ((group_hashes + numbers.astype(np.uint64)) & low)


def group_bits(ids: Hashes) -> Hashes:
    """What the identities of one group's `members` have in common [n]."""
    return ids >> np.uint64(MEMBER_BITS)


def hash_range_indices(hashes: Hashes, num_ranges: int) -> NDArray[np.int64]:
    """The range that each hash lies in [n], of `count` equal ones, a power of two. Ranges keep the order of hashes, and hashes fill them evenly."""
    bits = num_ranges.bit_length() - 1
    return (hashes >> np.uint64(32) >> np.uint64(32 - bits)).astype(np.int64)

"""The k-core of a domain's interactions (paper Sec. 5.1, k = 3).

It is the largest subset in which every user and every item has at least k interactions.
"""

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataError

Codes = NDArray[np.uint32]
"""Users or items as integers from 0 on [n], one per interaction."""


def k_core_rows(
    user: Codes,
    item: Codes,
    k: int,
    user_has_k: NDArray[np.bool_] | None = None,
    item_has_k: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Returns the rows of the k-core.

    Users and items with fewer than k interactions are dropped until all that remain have k.

    Interactions can also be added to an existing k-core: mark its users and items in the two masks.
    The existing core and the returned rows together are the k-core of all interactions.

    Args:
        user: User of each interaction [n].
        item: Item of each interaction [n].
        k: Minimum interactions of a user and of an item.
        user_has_k: Which users are in the existing core [users]; None: no core exists.
        item_has_k: Which items are in the existing core [items]; None: no core exists.

    Returns:
        Row numbers, ascending.
    """
    rows = np.arange(user.size)
    while True:
        is_kept = _reaches_k(user, k, user_has_k)[user] & _reaches_k(item, k, item_has_k)[item]
        if is_kept.all():
            return rows
        rows, user, item = rows[is_kept], user[is_kept], item[is_kept]


def prune_round(
    user: Codes,
    item: Codes,
    k: int,
    item_remains: NDArray[np.bool_] | None,
    user_has_k: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Computes one round of the k-core for a range of users: drops items, then users below k.

    The k-core is reached by repeating rounds over all ranges until none drops a row. Between two
    rounds, the caller counts items over all ranges to find those that still have k interactions.

    Args:
        user: User of each interaction [n]; all interactions of these users must be given.
        item: Item of each interaction [n].
        k: Minimum interactions of a user and of an item.
        item_remains: Which items had k interactions after the previous round, or are in an existing
            core [items]; None in the first round: all remain.
        user_has_k: Which users are in an existing core, as for `k_core_rows`.

    Returns:
        Numbers of the rows that remain, ascending.
    """
    rows = np.arange(user.size) if item_remains is None else np.flatnonzero(item_remains[item])
    return rows[_reaches_k(user[rows], k, user_has_k)[user[rows]]]


def empty_core_error(
    domain: str, k: int, rows: int, is_core_empty: Callable[[int], bool]
) -> DataError:
    """Returns the error for a domain whose k-core is empty; it says which k would leave data.

    Args:
        domain: Name of the domain.
        k: The k whose core is empty.
        rows: Interactions before the k-core.
        is_core_empty: Whether the core of a smaller k is empty.
    """
    largest_nonempty = largest_k(is_core_empty, k)
    advice = (
        f"the largest data.k_core that leaves data is {largest_nonempty}"
        if largest_nonempty
        else "it holds no interaction that can be used"
    )
    return DataError(f"{domain}: the {k}-core of {rows:,} interactions is empty; {advice}")


def largest_k(is_core_empty: Callable[[int], bool], below: int) -> int:
    """Returns the largest k < `below` whose core is not empty, 0 if there is none."""
    # The core of k + 1 is a subset of the core of k, so emptiness is monotonic: bisect.
    return bisect_left(range(1, below), True, key=is_core_empty)


def _reaches_k(codes: Codes, k: int, has_k_already: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Returns for each user, or item, whether it occurs at least k times or has k already."""
    if has_k_already is None:
        return np.bincount(codes) >= k
    return (np.bincount(codes, minlength=has_k_already.size) >= k) | has_k_already

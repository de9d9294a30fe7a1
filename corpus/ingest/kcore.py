"""The k-core of a domain: every user and every item that is left has at least k interactions (paper Sec. 5.1, k = 3)."""

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataError

Codes = NDArray[np.uint32]


def k_core_rows(
    user: Codes,
    item: Codes,
    k: int,
    user_has_k: NDArray[np.bool_] | None = None,
    item_has_k: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The rows of the k-core, ascending, of interactions [n] whose users and items are numbers: those with fewer than k are dropped until all have k.

    known_...: by number, who has k already: those of a core that these interactions are added to. What is left joined to it is the core of both.
    """
    left = np.arange(user.size)
    while True:
        enough = _reaches_k(user, k, user_has_k)[user] & _reaches_k(item, k, item_has_k)[item]
        if enough.all():
            return left
        left, user, item = left[enough], user[enough], item[enough]


def prune_round(
    user: Codes,
    item: Codes,
    k: int,
    item_remains: NDArray[np.bool_] | None,
    user_has_k: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """One round of many over *some* users, all of whose interactions are there: the rows of items that are left, and of users that then have k.

    items_left: by number; None: all are; known_user: by number, who has k already. Rounds over all users, each with the items that have k after the
    one before or had it already, end in the core.
    """
    left = np.arange(user.size) if item_remains is None else np.flatnonzero(item_remains[item])
    return left[_reaches_k(user[left], k, user_has_k)[user[left]]]


def empty_core_error(
    domain: str, k: int, rows: int, is_core_empty: Callable[[int], bool]
) -> DataError:
    """What to tell of a domain whose core is empty. rows: before; is_empty: whether another k's core is."""
    best = largest_k(is_core_empty, k)
    advice = (
        f"the largest data.k_core that leaves data is {best}"
        if best
        else "it holds no interaction that can be used"
    )
    return DataError(f"{domain}: the {k}-core of {rows:,} interactions is empty; {advice}")


def largest_k(is_core_empty: Callable[[int], bool], below: int) -> int:
    """The largest k < `below` whose core is not empty; 0 if there is none. Cores are nested, so it is found by bisection."""
    return bisect_left(range(1, below), True, key=is_core_empty)


def _reaches_k(codes: Codes, k: int, has_k_already: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """By number: whether it comes at least k times, or needs not to."""
    if has_k_already is None:
        return np.bincount(codes) >= k
    return (np.bincount(codes, minlength=has_k_already.size) >= k) | has_k_already

"""The k-core of a domain: every user and every item that is left has at least k interactions (paper Sec. 5.1, k = 3)."""

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataError

Codes = NDArray[np.uint32]


def rows_of_core(
    user: Codes,
    item: Codes,
    k: int,
    known_user: NDArray[np.bool_] | None = None,
    known_item: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The rows of the k-core, ascending, of interactions [n] whose users and items are numbers: those with fewer than k are dropped until all have k.

    known_...: by number, who has k already: those of a core that these interactions are added to. What is left joined to it is the core of both.
    """
    left = np.arange(user.size)
    while True:
        enough = _enough(user, k, known_user)[user] & _enough(item, k, known_item)[item]
        if enough.all():
            return left
        left, user, item = left[enough], user[enough], item[enough]


def rows_of_round(
    user: Codes,
    item: Codes,
    k: int,
    items_left: NDArray[np.bool_] | None,
    known_user: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """One round of many over *some* users, all of whose interactions are there: the rows of items that are left, and of users that then have k.

    items_left: by number; None: all are; known_user: by number, who has k already. Rounds over all users, each with the items that have k after the
    one before or had it already, end in the core.
    """
    left = np.arange(user.size) if items_left is None else np.flatnonzero(items_left[item])
    return left[_enough(user[left], k, known_user)[user[left]]]


def empty(domain: str, k: int, rows: int, is_empty: Callable[[int], bool]) -> DataError:
    """What to tell of a domain whose core is empty. rows: before; is_empty: whether another k's core is."""
    best = largest_k(is_empty, k)
    advice = (
        f"the largest data.k_core that leaves data is {best}"
        if best
        else "it holds no interaction that can be used"
    )
    return DataError(f"{domain}: the {k}-core of {rows:,} interactions is empty; {advice}")


def largest_k(is_empty: Callable[[int], bool], below: int) -> int:
    """The largest k < `below` whose core is not empty; 0 if there is none. Cores are nested, so it is found by bisection."""
    return bisect_left(range(1, below), True, key=is_empty)


def _enough(codes: Codes, k: int, known: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """By number: whether it comes at least k times, or needs not to."""
    if known is None:
        return np.bincount(codes) >= k
    return (np.bincount(codes, minlength=known.size) >= k) | known

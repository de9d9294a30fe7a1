"""The k-core of interactions, against a slow loop over plain rows."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from corpus.ingest.kcore import Codes, k_core_rows, largest_k, prune_round
from tests.unit.corpus import brute

Pairs = list[tuple[int, int]]
"""Interactions: user and item."""

interactions = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)
masks = st.lists(st.booleans(), min_size=8, max_size=8).map(np.array)
"""Which users, or items, have k already."""
NOBODY = np.zeros(8, bool)


def columns(pairs: Pairs) -> tuple[Codes, Codes]:
    """The users and the items of interactions."""
    user, item = np.array(pairs, np.uint32).reshape(-1, 2).T
    return user, item


def brute_core_rows(
    pairs: Pairs,
    k: int,
    user_has_k: NDArray[np.bool_] = NOBODY,
    item_has_k: NDArray[np.bool_] = NOBODY,
) -> list[int]:
    """The rows of the k-core, by the slow loop."""
    has_k = {f"u{user}" for user in np.flatnonzero(user_has_k)} | {
        f"i{item}" for item in np.flatnonzero(item_has_k)
    }
    rows = [(f"u{user}", f"i{item}", row) for row, (user, item) in enumerate(pairs)]
    return [row for *_, row in brute.core(rows, k, has_k)]


@given(interactions, st.integers(1, 5))
def test_core_is_the_largest_set_in_which_all_have_k(pairs: Pairs, k: int) -> None:
    assert k_core_rows(*columns(pairs), k).tolist() == brute_core_rows(pairs, k)


@given(interactions, st.integers(1, 5), masks, masks)
def test_users_and_items_that_have_k_already_stay(
    pairs: Pairs, k: int, user_has_k: NDArray[np.bool_], item_has_k: NDArray[np.bool_]
) -> None:
    assert k_core_rows(*columns(pairs), k, user_has_k, item_has_k).tolist() == brute_core_rows(
        pairs, k, user_has_k, item_has_k
    )


@given(interactions, st.integers(1, 5))
def test_core_of_a_core_is_itself(pairs: Pairs, k: int) -> None:
    user, item = columns(pairs)
    core = k_core_rows(user, item, k)
    assert k_core_rows(user[core], item[core], k).tolist() == list(range(core.size))


@given(interactions)
def test_cores_are_nested_and_the_largest_k_is_the_last_with_rows(pairs: Pairs) -> None:
    cores = [set(k_core_rows(*columns(pairs), k).tolist()) for k in range(1, 9)]
    assert all(inner <= outer for outer, inner in pairwise(cores))
    assert largest_k(lambda k: not k_core_rows(*columns(pairs), k).size, 9) == sum(map(bool, cores))


@given(interactions, st.integers(1, 5), st.integers(1, 4), masks, masks)
def test_rounds_over_ranges_of_users_end_in_the_core(
    pairs: Pairs, k: int, ranges: int, user_has_k: NDArray[np.bool_], item_has_k: NDArray[np.bool_]
) -> None:
    user, item = columns(pairs)
    range_rows = [np.flatnonzero(user % ranges == number) for number in range(ranges)]
    item_remains = None
    while True:
        remaining = [
            rows[prune_round(user[rows], item[rows], k, item_remains, user_has_k)]
            for rows in range_rows
        ]
        is_done = item_remains is not None and all(
            before.size == after.size for before, after in zip(range_rows, remaining, strict=True)
        )
        range_rows = remaining
        item_counts = np.bincount(item[np.concatenate(range_rows)], minlength=8)
        item_remains = (item_counts >= k) | item_has_k
        if is_done:
            break
    assert np.sort(np.concatenate(range_rows)).tolist() == brute_core_rows(
        pairs, k, user_has_k, item_has_k
    )

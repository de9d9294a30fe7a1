from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from corpus.ingest.kcore import Codes, k_core_rows, largest_k, prune_round
from tests.unit.corpus import brute

Pairs = list[tuple[int, int]]

interactions = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)
some = st.lists(st.booleans(), min_size=8, max_size=8).map(np.array)
"""Of each number, whether it has k already."""
nobody = np.zeros(8, bool)


def numbers(found: Pairs) -> tuple[Codes, Codes]:
    user, item = np.array(found, np.uint32).reshape(-1, 2).T
    return user, item


def slowly(
    found: Pairs,
    k: int,
    known_user: NDArray[np.bool_] = nobody,
    known_item: NDArray[np.bool_] = nobody,
) -> list[int]:
    known = {f"u{user}" for user in np.flatnonzero(known_user)} | {
        f"i{item}" for item in np.flatnonzero(known_item)
    }
    return [
        row
        for *_, row in brute.core(
            [(f"u{user}", f"i{item}", row) for row, (user, item) in enumerate(found)], k, known
        )
    ]


@given(interactions, st.integers(1, 5))
def test_it_is_the_largest_set_in_which_all_have_k(found: Pairs, k: int) -> None:
    assert k_core_rows(*numbers(found), k).tolist() == slowly(found, k)


@given(interactions, st.integers(1, 5), some, some)
def test_who_has_k_already_stays(
    found: Pairs, k: int, known_user: NDArray[np.bool_], known_item: NDArray[np.bool_]
) -> None:
    assert k_core_rows(*numbers(found), k, known_user, known_item).tolist() == slowly(
        found, k, known_user, known_item
    )


@given(interactions, st.integers(1, 5))
def test_it_is_a_fixed_point(found: Pairs, k: int) -> None:
    user, item = numbers(found)
    core = k_core_rows(user, item, k)
    assert k_core_rows(user[core], item[core], k).tolist() == list(range(core.size))


@given(interactions)
def test_cores_are_nested_and_the_largest_k_is_the_last_with_rows(found: Pairs) -> None:
    cores = [set(k_core_rows(*numbers(found), k).tolist()) for k in range(1, 9)]
    assert all(inner <= outer for outer, inner in pairwise(cores))
    assert largest_k(lambda k: not k_core_rows(*numbers(found), k).size, 9) == sum(map(bool, cores))


@given(interactions, st.integers(1, 5), st.integers(1, 4), some, some)
def test_rounds_over_ranges_of_users_end_in_the_core(
    found: Pairs, k: int, ranges: int, known_user: NDArray[np.bool_], known_item: NDArray[np.bool_]
) -> None:
    user, item = numbers(found)
    parts = [np.flatnonzero(user % ranges == number) for number in range(ranges)]
    items_left = None
    while True:
        after = [
            part[prune_round(user[part], item[part], k, items_left, known_user)] for part in parts
        ]
        rounds_end = items_left is not None and all(
            a.size == b.size for a, b in zip(parts, after, strict=True)
        )
        parts, items_left = (
            after,
            (np.bincount(item[np.concatenate(after)], minlength=8) >= k) | known_item,
        )
        if rounds_end:
            break
    assert np.sort(np.concatenate(parts)).tolist() == slowly(found, k, known_user, known_item)

from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from corpus.kcore import k_core, largest_k, rows_of_core, rows_of_round
from tests.unit.corpus import brute

interactions = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60).map(
    lambda rows: pl.DataFrame(
        [(f"u{user}", f"i{item}", row) for row, (user, item) in enumerate(rows)],
        schema={"user_id": pl.String, "item_id": pl.String, "row": pl.Int64},
        orient="row",
    )
)


@given(interactions, st.integers(1, 5))
def test_it_is_the_largest_set_in_which_all_have_k(found: pl.DataFrame, k: int) -> None:
    assert k_core(found, k)["row"].to_list() == [row for *_, row in brute.core(list(found.iter_rows()), k)]


@given(interactions, st.integers(1, 5))
def test_it_is_a_fixed_point_and_keeps_columns_and_order(found: pl.DataFrame, k: int) -> None:
    core = k_core(found, k)
    assert k_core(core, k).equals(core)
    assert core.columns == found.columns
    assert core["row"].is_sorted()


@given(interactions)
def test_cores_are_nested_and_the_largest_k_is_the_last_with_rows(found: pl.DataFrame) -> None:
    cores = [set(k_core(found, k)["row"]) for k in range(1, 9)]
    assert all(inner <= outer for outer, inner in pairwise(cores))
    assert largest_k(lambda k: k_core(found, k).is_empty(), 9) == sum(map(bool, cores))


some = st.lists(st.booleans(), min_size=8, max_size=8).map(np.array)
"""Of each number, whether it has k already."""


@given(interactions, st.integers(1, 5), st.integers(1, 4), some, some)
def test_rounds_over_ranges_of_users_end_in_the_core(
    found: pl.DataFrame, k: int, ranges: int, known_user: NDArray[np.bool_], known_item: NDArray[np.bool_]
) -> None:
    user, item = (found[name].str.slice(1).cast(pl.UInt32).to_numpy() for name in ("user_id", "item_id"))
    parts = [np.flatnonzero(user % ranges == number) for number in range(ranges)]
    items_left = None
    while True:
        after = [part[rows_of_round(user[part], item[part], k, items_left, known_user)] for part in parts]
        rounds_end = items_left is not None and all(a.size == b.size for a, b in zip(parts, after, strict=True))
        parts, items_left = after, (np.bincount(item[np.concatenate(after)], minlength=8) >= k) | known_item
        if rounds_end:
            break
    users, items = (pl.Series(np.flatnonzero(known)) for known in (known_user, known_item))
    of_both = k_core(found, k, pl.select(pl.format("u{}", users)).to_series(), pl.select(pl.format("i{}", items)).to_series())
    assert np.sort(np.concatenate(parts)).tolist() == rows_of_core(user, item, k, known_user, known_item).tolist()
    assert found[np.sort(np.concatenate(parts))].equals(of_both)

"""Popularity counts what it is given, and orders items stably."""

import numpy as np

from cprec.baselines.popularity import count_purchases, order_by_count


def test_items_never_bought_come_last_and_ties_in_the_order_of_items() -> None:
    items = np.array([3, 5, 7, 8, 9])
    counts = count_purchases([[5, 9, 5], [9, 4, 11], [8]], items)
    assert counts.tolist() == [0, 2, 0, 1, 2]
    assert order_by_count(items, counts).tolist() == [5, 9, 8, 3, 7]
    assert count_purchases([], items).tolist() == [0] * 5

"""The k-core of a domain: every user and every item that is left has at least k interactions (paper Sec. 5.1, k = 3)."""

from bisect import bisect_left

import polars as pl


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """Drop users and items with fewer than k interactions until none is left to drop.

    interactions: at least the columns user_id and item_id, one row each. Returns the rows that are left, in their order; none if no core is there.
    """
    while True:
        kept = interactions.filter(pl.len().over("user_id") >= k).filter(pl.len().over("item_id") >= k)
        if kept.height == interactions.height:
            return kept
        interactions = kept


def largest_k(interactions: pl.DataFrame, below: int) -> int:
    """The largest k < `below` whose core is not empty; 0 if there is none. Cores are nested, so it is found by bisection."""
    return bisect_left(range(1, below), True, key=lambda k: k_core(interactions, k).is_empty())

"""The k-core of a domain: every user and every item that is left has at least k interactions (paper Sec. 5.1, k = 3)."""

from bisect import bisect_left

import polars as pl


def k_core(interactions: pl.DataFrame, k: int, users: pl.Series | None = None, items: pl.Series | None = None) -> pl.DataFrame:
    """Drop users and items with fewer than k interactions until none is left to drop.

    interactions: at least the columns user_id and item_id, one row each. users, items: those of a core that these interactions are added to; they
    have their k already. With them, what is left joined to that core is the core of both together.
    Returns the rows that are left, in their order; none if no core is there.
    """
    enough_of_user, enough_of_item = _enough("user_id", k, users), _enough("item_id", k, items)
    while True:
        kept = interactions.filter(enough_of_user).filter(enough_of_item)
        if kept.height == interactions.height:
            return kept
        interactions = kept


def largest_k(interactions: pl.DataFrame, below: int) -> int:
    """The largest k < `below` whose core is not empty; 0 if there is none. Cores are nested, so it is found by bisection."""
    return bisect_left(range(1, below), True, key=lambda k: k_core(interactions, k).is_empty())


def _enough(column: str, k: int, known: pl.Series | None) -> pl.Expr:
    count = pl.len().over(column) >= k
    return count if known is None else count | pl.col(column).is_in(known.implode())

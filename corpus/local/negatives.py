"""Checks that every user leaves enough items of each domain to draw negatives from.

A user's negatives are items that the user never interacted with, so in a small domain a busy user
may leave too few. It is enough to look at the busiest user of each domain; both backends do.
"""

from collections.abc import Mapping

import polars as pl

from cluster.errors import DataError
from corpus.sampling.encoded_interactions import EncodedInteractions


def find_busiest_users(
    interactions: EncodedInteractions, item_counts: Mapping[str, int], num_negatives: int
) -> pl.DataFrame:
    """Finds the busiest user of each domain, among those who may leave too few of some domain.

    Args:
        interactions: All interactions of some users.
        item_counts: Items of each domain.
        num_negatives: Negatives of a sample.

    Returns:
        domain, user_id, had (distinct items of the domain that the user interacted with), by
        domain. A domain of which all users leave enough may be missing.
    """
    num_items = pl.col("domain").replace_strict(dict(item_counts), return_dtype=pl.Int64)
    # `size` counts repeated purchases, so this finds every such user, and some who leave enough.
    suspects = interactions.user_domain_counts.filter(
        num_items - pl.col("size") < num_negatives
    ).select("user", "domain")
    rows = interactions.rows.join(suspects.select("user").unique(), on="user", how="semi").select(
        "user", "item"
    )
    rows = rows.with_columns(
        domain=interactions.items["domain"].gather(rows["item"]).cast(pl.String)
    )
    had = rows.group_by("domain", "user").agg(had=pl.col("item").n_unique().cast(pl.Int64))
    return select_busiest_per_domain(
        had.with_columns(user_id=interactions.users["user_id"].gather(had["user"])).select(
            "domain", "user_id", "had"
        )
    )


def select_busiest_per_domain(user_item_counts: pl.DataFrame) -> pl.DataFrame:
    """Returns the row of each domain's user with the most items (ties by user_id), by domain.

    Args:
        user_item_counts: domain, user_id, had (distinct items).
    """
    return (
        user_item_counts.sort("domain", "had", "user_id", descending=[False, True, False])
        .group_by("domain", maintain_order=True)
        .first()
    )


def check_enough_negatives(
    busiest_users: pl.DataFrame, item_counts: Mapping[str, int], num_negatives: int
) -> None:
    """Checks that the busiest users leave enough items to draw negatives from.

    Args:
        busiest_users: Result of `find_busiest_users`, over all users.
        item_counts: Items of each domain.
        num_negatives: Negatives of a sample.

    Raises:
        DataError: A user leaves fewer items of a domain than a sample has negatives.
    """
    for domain, user, had in busiest_users.iter_rows():
        num_left = item_counts[domain] - had
        if num_left < num_negatives:
            raise DataError(
                f"{domain}: {item_counts[domain]} items, of which user {user} interacted with "
                f"{had}: {num_left} are left, {num_negatives} negatives are wanted; lower "
                f"data.num_candidates to {num_left + 1} or less, or drop the domain"
            )

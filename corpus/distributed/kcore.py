"""Computes the k-core of one domain whose users are spread over ranges, as tables on Ray.

In a round, each range drops the items that had too few interactions in the round before, then the
users that have too few, and counts the items that remain. The counts of all ranges are added up.
The core is reached when a round drops nothing. A domain has one k-core only, so it is the one that
`corpus.ingest.kcore.k_core_rows` finds. No row moves between ranges; the driver sees counts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from corpus.distributed.tasks import Ref, get_results, submit
from corpus.ingest.kcore import prune_round
from corpus.sampling.encoded_interactions import DomainInteractions, remove_unused_categories

ItemCounts = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""Item codes that occur, ascending, and how often each occurs; absent items have count 0."""

KnownUsers = pl.Series
"""Ids of the users of a range who count as having k interactions: the corpus has them already."""

COUNTS_PER_TASK = 16
"""ItemCounts that one task adds up."""


@dataclass(frozen=True)
class KCore:
    """The k-core of a domain.

    Attributes:
        tables: Refs of its interactions (DomainInteractions), one for each range of users.
        rows: Interactions in all ranges.
        users: Users in all ranges.
        item_mask: Ref of a bool array [items]: whether an item is in the core, by item code.
    """

    tables: tuple[Ref, ...]
    rows: int
    users: int
    item_mask: Ref


def compute_kcore(
    tables: Sequence[Ref],
    k: int,
    num_items: int,
    known_users: Sequence[Ref] = (),
    known_items: Ref = None,
) -> KCore:
    """Computes the k-core of a domain.

    Args:
        tables: Refs of its interactions (DomainInteractions), one for each range of users.
        k: Interactions that every user and every item must have, at least.
        num_items: Number of item codes.
        known_users: Refs of KnownUsers, one for each range; none by default.
        known_items: Ref of a bool array [items]: whether an item counts as having k interactions
            already, by item code; none does by default.
    """
    known_users = known_users or [None] * len(tables)
    item_mask: Ref = None  # the first round has no counts yet and drops users only
    while True:
        rounds = [
            submit(_run_round, table, k, item_mask, known, num_returns=3)
            for table, known in zip(tables, known_users, strict=True)
        ]
        tables = [table for table, _, _ in rounds]
        item_counts = [counts for _, counts, _ in rounds]
        sizes = get_results([size for _, _, size in rounds])
        if item_mask is not None and not any(dropped for dropped, _, _ in sizes):
            return KCore(
                tuple(tables),
                sum(rows for _, rows, _ in sizes),
                sum(users for _, _, users in sizes),
                item_mask,
            )
        item_mask = submit(_mark_frequent_items, k, num_items, known_items, _tree_sum(item_counts))


def _run_round(
    table: DomainInteractions,
    k: int,
    item_mask: NDArray[np.bool_] | None,
    known_users: KnownUsers | None,
) -> tuple[DomainInteractions, ItemCounts, tuple[int, int, int]]:
    """Runs one round on one range of users.

    Args:
        table: Interactions of the range.
        k: Interactions that a user must have, at least.
        item_mask: Whether an item has enough interactions, by item code [items]; None: all have.
        known_users: Users who count as having k interactions; None: there are none.

    Returns:
        The interactions that remain, the counts of their items, and three numbers: rows dropped,
        rows that remain, users that remain.
    """
    rows, user_ids = table
    user_has_k = None if known_users is None else user_ids.is_in(known_users.implode()).to_numpy()
    remaining = prune_round(
        rows["user"].to_numpy(), rows["item"].to_numpy(), k, item_mask, user_has_k
    )
    if remaining.size < rows.height:
        rows = rows[remaining]
        user, user_ids = remove_unused_categories(rows["user"], user_ids)
        rows = rows.with_columns(user=user)
    items, counts = np.unique(rows["item"].to_numpy(), return_counts=True)
    num_dropped = table[0].height - rows.height
    return (rows, user_ids), (items, counts), (num_dropped, rows.height, user_ids.len())


def _tree_sum(item_counts: Sequence[Ref]) -> Ref:
    """Adds up refs of ItemCounts in a tree of tasks, COUNTS_PER_TASK at a time."""
    while len(item_counts) > 1:
        item_counts = [
            submit(_add_counts, *item_counts[first : first + COUNTS_PER_TASK])
            for first in range(0, len(item_counts), COUNTS_PER_TASK)
        ]
    return item_counts[0]


def _add_counts(*item_counts: ItemCounts) -> ItemCounts:
    """Adds up the counts of several ranges."""
    items, position = np.unique(
        np.concatenate([items for items, _ in item_counts]), return_inverse=True
    )
    total = np.zeros(items.size, np.int64)
    np.add.at(total, position, np.concatenate([counts for _, counts in item_counts]))
    return items, total


def _mark_frequent_items(
    k: int, num_items: int, known_items: NDArray[np.bool_] | None, item_counts: ItemCounts
) -> NDArray[np.bool_]:
    """Marks the items that occur and have k interactions, or count as having them, by code."""
    items, counts = item_counts
    has_k = counts >= k if known_items is None else (counts >= k) | known_items[items]
    mask = np.zeros(num_items, bool)
    mask[items[has_k]] = True
    return mask

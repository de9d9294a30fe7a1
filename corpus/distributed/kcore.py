"""The k-core of one domain whose users lie in ranges, each a table in Ray's object store. The process that asks sees counts only.

A round: every range drops the items that have too few interactions, then the users that have, and counts the items of what is left; the counts are
added up. The core is where a round drops nothing. There is only one, so it is that of `corpus.ingest.kcore.rows_of_core`.
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
"""Items, ascending, and how often each comes; those that do not come are not there."""

KnownUsers = pl.Series
"""Names of users of a range who have their k already: those that the corpus has."""

COUNTS_PER_TASK = 16
"""Counts that a task adds up."""


@dataclass(frozen=True)
class KCore:
    """ranges: refs of tables; rows, users: their numbers, over all; items: ref of which items come in it, by number."""

    tables: tuple[Ref, ...]
    rows: int
    users: int
    item_mask: Ref


def compute_kcore(
    tables: Sequence[Ref],
    k: int,
    item_count: int,
    known_users: Sequence[Ref] = (),
    known_items: Ref = None,
) -> KCore:
    """The k-core of a domain. ranges: refs of tables, which stay as they are; items: how many numbers of items there are.

    users: refs of Known, a range each; known: ref of marks, by number of item: who has k already, as for `kcore.rows_of_core`; none unless told.
    """
    left: Ref = None
    while True:
        rounds = [
            submit(_run_round, table, k, left, of, num_returns=3)
            for table, of in zip(tables, known_users or [None] * len(tables), strict=True)
        ]
        tables, counts = [of[0] for of in rounds], [of[1] for of in rounds]
        sizes = get_results([of[2] for of in rounds])
        if left is not None and not any(dropped for dropped, _, _ in sizes):
            return KCore(
                tuple(tables),
                sum(rows for _, rows, _ in sizes),
                sum(users for _, _, users in sizes),
                left,
            )
        left = submit(_mark_frequent_items, k, item_count, known_items, _tree_sum(counts))


def _run_round(
    table: DomainInteractions,
    k: int,
    item_mask: NDArray[np.bool_] | None,
    known_users: KnownUsers | None,
) -> tuple[DomainInteractions, ItemCounts, tuple[int, int, int]]:
    """What a round leaves of a range, the counts of its items; and how many rows it dropped, rows and users it left."""
    rows, users = table
    known_user = None if known_users is None else users.is_in(known_users.implode()).to_numpy()
    left = prune_round(rows["user"].to_numpy(), rows["item"].to_numpy(), k, item_mask, known_user)
    if left.size < rows.height:
        rows = rows[left]
        user, users = remove_unused_categories(rows["user"], users)
        rows = rows.with_columns(user=user)
    items, counts = np.unique(rows["item"].to_numpy(), return_counts=True)
    return (rows, users), (items, counts), (table[0].height - rows.height, rows.height, users.len())


def _tree_sum(counts: Sequence[Ref]) -> Ref:
    """The sum of counts, a few at a time."""
    while len(counts) > 1:
        counts = [
            submit(_add_counts, *counts[first : first + COUNTS_PER_TASK])
            for first in range(0, len(counts), COUNTS_PER_TASK)
        ]
    return counts[0]


def _add_counts(*counts: ItemCounts) -> ItemCounts:
    items, place = np.unique(np.concatenate([items for items, _ in counts]), return_inverse=True)
    total = np.zeros(items.size, np.int64)
    np.add.at(total, place, np.concatenate([count for _, count in counts]))
    return items, total


def _mark_frequent_items(
    k: int, item_count: int, known_items: NDArray[np.bool_] | None, item_counts: ItemCounts
) -> NDArray[np.bool_]:
    """By number: which of the items that come do so at least k times, or had k already."""
    number, count = item_counts
    enough = count >= k if known_items is None else (count >= k) | known_items[number]
    left = np.zeros(item_count, bool)
    left[number[enough]] = True
    return left

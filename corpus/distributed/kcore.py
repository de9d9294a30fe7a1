"""The k-core of one domain whose users lie in ranges, each a table in Ray's object store. The process that asks sees counts only.

A round: every range drops the items that have too few interactions, then the users that have, and counts the items of what is left; the counts are
added up. The core is where a round drops nothing. There is only one, so it is that of `corpus.ingest.kcore.rows_of_core`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from corpus.distributed.tasks import Ref, start, told
from corpus.ingest.kcore import rows_of_round
from corpus.sampling.encoded_interactions import Table, renumbered

Counts = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""Items, ascending, and how often each comes; those that do not come are not there."""

Known = pl.Series
"""Names of users of a range who have their k already: those that the corpus has."""

SUMMED = 16
"""Counts that a task adds up."""


@dataclass(frozen=True)
class Core:
    """ranges: refs of tables; rows, users: their numbers, over all; items: ref of which items come in it, by number."""

    ranges: tuple[Ref, ...]
    rows: int
    users: int
    items: Ref


def core(
    ranges: Sequence[Ref], k: int, items: int, users: Sequence[Ref] = (), known: Ref = None
) -> Core:
    """The k-core of a domain. ranges: refs of tables, which stay as they are; items: how many numbers of items there are.

    users: refs of Known, a range each; known: ref of marks, by number of item: who has k already, as for `kcore.rows_of_core`; none unless told.
    """
    left: Ref = None
    while True:
        rounds = [
            start(_round, table, k, left, of, results=3)
            for table, of in zip(ranges, users or [None] * len(ranges), strict=True)
        ]
        ranges, counts = [of[0] for of in rounds], [of[1] for of in rounds]
        sizes = told([of[2] for of in rounds])
        if left is not None and not any(dropped for dropped, _, _ in sizes):
            return Core(
                tuple(ranges),
                sum(rows for _, rows, _ in sizes),
                sum(users for _, _, users in sizes),
                left,
            )
        left = start(_having, k, items, known, _total(counts))


def _round(
    table: Table, k: int, items_left: NDArray[np.bool_] | None, known: Known | None
) -> tuple[Table, Counts, tuple[int, int, int]]:
    """What a round leaves of a range, the counts of its items; and how many rows it dropped, rows and users it left."""
    rows, users = table
    known_user = None if known is None else users.is_in(known.implode()).to_numpy()
    left = rows_of_round(
        rows["user"].to_numpy(), rows["item"].to_numpy(), k, items_left, known_user
    )
    if left.size < rows.height:
        rows = rows[left]
        user, users = renumbered(rows["user"], users)
        rows = rows.with_columns(user=user)
    items, counts = np.unique(rows["item"].to_numpy(), return_counts=True)
    return (rows, users), (items, counts), (table[0].height - rows.height, rows.height, users.len())


def _total(counts: Sequence[Ref]) -> Ref:
    """The sum of counts, a few at a time."""
    while len(counts) > 1:
        counts = [
            start(_sum, *counts[first : first + SUMMED]) for first in range(0, len(counts), SUMMED)
        ]
    return counts[0]


def _sum(*counts: Counts) -> Counts:
    items, place = np.unique(np.concatenate([items for items, _ in counts]), return_inverse=True)
    total = np.zeros(items.size, np.int64)
    np.add.at(total, place, np.concatenate([count for _, count in counts]))
    return items, total


def _having(
    k: int, items: int, known: NDArray[np.bool_] | None, total: Counts
) -> NDArray[np.bool_]:
    """By number: which of the items that come do so at least k times, or had k already."""
    number, count = total
    enough = count >= k if known is None else (count >= k) | known[number]
    left = np.zeros(items, bool)
    left[number[enough]] = True
    return left

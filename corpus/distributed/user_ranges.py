"""Partitions interactions by ranges of their users' hashes, in tasks."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from corpus.distributed.reading import DomainTables
from corpus.distributed.tasks import Ref, get_results, submit
from corpus.ingest import cleaning
from corpus.sampling import hashing
from corpus.sampling.encoded_interactions import (
    DomainInteractions,
    encode_values,
    remove_unused_categories,
)

ROWS_PER_RESULT = 1 << 13
"""Rows of a range in one result of a partitioning task, on average.

Ray would keep much smaller results in the memory of the driver.
"""


def group_by_user_range(
    domain: DomainTables, num_ranges: int, max_per_user: int
) -> tuple[list[Ref], Counter[str]]:
    """Partitions a domain's interactions by ranges of users, then deduplicates and caps them.

    Args:
        domain: The domain, as it was read.
        num_ranges: Number of ranges, a power of two.
        max_per_user: Interactions of a user, at most; the most recent are kept.

    Returns:
        Refs of the interactions (DomainInteractions), one for each range, and the rows left out,
        by reason.
    """
    # A task partitions several tables, so that its results are not too small.
    batches: list[list[Ref]] = [[]]
    batch_rows = 0
    for table, height in zip(domain.tables, domain.table_rows, strict=True):
        if batch_rows >= ROWS_PER_RESULT * num_ranges:
            batches.append([])
            batch_rows = 0
        batches[-1].append(table)
        batch_rows += height
    partitioned = [
        submit(_split_by_user_range, num_ranges, 0, num_ranges, *batch, num_returns=num_ranges)
        for batch in batches
    ]
    # A task with one result gives a ref, not a list of them.
    by_range = [partitioned] if num_ranges == 1 else zip(*partitioned, strict=True)
    cleaned = [
        submit(_deduplicate_and_cap, max_per_user, *tables, num_returns=2) for tables in by_range
    ]
    dropped = sum(get_results([repeated for _, repeated in cleaned]), Counter[str]())
    return [table for table, _ in cleaned], dropped


def subdivide_ranges(tables: Sequence[Ref], factor: int) -> list[Ref]:
    """Splits the table of each range of users into tables of finer ranges.

    Args:
        tables: Refs of DomainInteractions, one for each range.
        factor: Finer ranges in each range, a power of two.

    Returns:
        Refs of DomainInteractions, one for each finer range.
    """
    if factor == 1:
        return list(tables)
    num_ranges = len(tables) * factor
    return [
        part
        for i, table in enumerate(tables)
        for part in submit(
            _split_by_user_range,
            num_ranges,
            i * factor,
            (i + 1) * factor,
            table,
            num_returns=factor,
        )
    ]


def _split_by_user_range(
    num_ranges: int, low: int, high: int, *tables: DomainInteractions
) -> DomainInteractions | list[DomainInteractions]:
    """Joins tables and splits them by ranges of user hashes.

    Args:
        num_ranges: Number of ranges that the hashes are divided into.
        low: The first range that has users of the tables.
        high: One past the last such range.
        tables: The interactions.

    Returns:
        The interactions of each range low .. high - 1; of a single range its table, not a list.
    """
    rows, user_ids = _concat_tables(tables)
    range_by_user = hashing.hash_range_indices(hashing.hash_strings(user_ids), num_ranges)
    row_range = range_by_user[rows["user"].to_numpy()]
    order = np.argsort(row_range, kind="stable")
    ends = np.searchsorted(row_range[order], np.arange(low, high + 1))
    parts = []
    for first, stop in pairwise(ends):
        part = rows[order[first:stop]]
        user, part_user_ids = remove_unused_categories(part["user"], user_ids)
        parts.append((part.with_columns(user=user), part_user_ids))
    return parts if len(parts) > 1 else parts[0]


def _deduplicate_and_cap(
    max_per_user: int, *tables: DomainInteractions
) -> tuple[DomainInteractions, Counter[str]]:
    """Joins the tables of one range of users, drops duplicates, and caps each user's interactions.

    Args:
        max_per_user: Interactions of a user, at most; the most recent are kept.
        tables: All interactions of the users in the range.

    Returns:
        The remaining interactions, and the number of rows dropped, by reason.
    """
    rows, user_ids = _concat_tables(tables)
    unique_rows, repeated = cleaning.deduplicate_and_cap(rows, max_per_user)
    return (unique_rows, user_ids), repeated


def _concat_tables(tables: Sequence[DomainInteractions]) -> DomainInteractions:
    """Joins tables into one, with common user codes."""
    all_user_ids = pl.concat([user_ids for _, user_ids in tables]).unique()
    return pl.concat(
        [
            rows.with_columns(user=encode_values(user_ids, all_user_ids).gather(rows["user"]))
            for rows, user_ids in tables
        ]
    ), all_user_ids

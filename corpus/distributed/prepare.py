"""Reads, cleans and numbers all domains of a build, on Ray.

Interactions are in tables in Ray's object store, which spills to disk when it is full.

1. A task reads a split of a file and leaves out the rows that are unusable by themselves
   (`corpus.distributed.reading`).
2. The tables of all splits are partitioned by ranges of the users' hashes. A task on one range then
   leaves out repeated interactions, and those beyond a user's cap
   (`corpus.distributed.user_ranges`).
3. The k-core of each domain is computed (`corpus.distributed.kcore`).
4. The ranges of all domains are joined into the blocks that samples are made of.

Items stay in the driver: they are far fewer than interactions, and their titles have to differ
within a domain.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cluster.console import Say
from corpus.backend import Prepared, UncommittedSamples
from corpus.distributed import sample_files
from corpus.distributed.kcore import KCore, compute_kcore
from corpus.distributed.reading import read_domains
from corpus.distributed.sample_files import BlockStatistics, InteractionBlocks
from corpus.distributed.tasks import Ref, submit
from corpus.distributed.user_ranges import group_by_user_range
from corpus.ingest.kcore import empty_core_error
from corpus.ingest.quarantine import QuarantinedRows
from corpus.local import prepare as local_prepare
from corpus.sampling.encoded_interactions import (
    DomainInteractions,
    EncodedInteractions,
)
from corpus.settings import DataSettings
from corpus.store import stored_interactions
from corpus.store.catalogue import count_items, group_item_indices


@dataclass(frozen=True)
class RayPrepared(Prepared):
    """The interactions of a build after cleaning and k-core, in Ray's object store.

    Attributes:
        blocks: Interactions of all domains, by ranges of users.
    """

    blocks: InteractionBlocks

    def write_sample_files(self, data: DataSettings, seed: int, uri: str) -> UncommittedSamples:
        """Makes all samples of version 0 and writes its files; see `Prepared`."""
        return self.blocks.write_sample_files(self.item_indices(), data, seed, uri)


def prepare_domains(data: DataSettings, say: Say) -> RayPrepared:
    """Reads and cleans every domain of a build, takes its k-core, and numbers its items.

    Raises:
        DataError: The interactions cannot be used; the message names the domain or the file.
    """
    domains, num_ranges = read_domains(data, local_prepare.list_domains(data), say)
    items = [local_prepare.empty_items()]
    dropped = Counter[str]()
    quarantined: list[QuarantinedRows] = []
    tables_by_domain: list[list[Ref]] = []
    total_rows = 0
    for name in list(domains):
        domain = domains.pop(name)  # dropping its refs lets the object store free its tables
        tables, repeated = group_by_user_range(domain, num_ranges, data.max_per_user)
        num_rows = sum(domain.table_rows) - repeated.total()
        first_index = sum(part.height for part in items)
        core = _nonempty_core(name, tables, num_rows, data.k_core, domain.items.height)
        numbered, num_renamed = local_prepare.number_items(
            name, domain.items.filter(ray.get(core.item_mask)), first_index
        )
        items.append(numbered)
        total_rows += core.rows
        tables_by_domain.append(
            [
                submit(_assign_item_indices, table, core.item_mask, first_index)
                for table in core.tables
            ]
        )
        dropped += (
            domain.dropped
            + repeated
            + Counter(k_core=num_rows - core.rows, title_made_distinct=num_renamed)
        )
        quarantined += domain.quarantined
        say(
            local_prepare.format_progress(name, core.users, numbered.height, core.rows, data.k_core)
        )
    return _prepare_blocks(
        tables_by_domain,
        stored_interactions.count_user_ranges(total_rows),
        pl.concat(items),
        dropped,
        tuple(quarantined),
        data,
    )


def _nonempty_core(domain: str, tables: Sequence[Ref], rows: int, k: int, num_items: int) -> KCore:
    """Computes the k-core of a domain of `rows` interactions; raises DataError if it is empty."""
    core = compute_kcore(tables, k, num_items)
    if not core.rows:
        raise empty_core_error(
            domain,
            k,
            rows,
            lambda smaller_k: not compute_kcore(tables, smaller_k, num_items).rows,
        )
    return core


def _assign_item_indices(
    table: DomainInteractions, item_mask: NDArray[np.bool_], first_index: int
) -> DomainInteractions:
    """Replaces the item codes of a domain by item indices.

    Args:
        table: Interactions of the domain's core.
        item_mask: Whether an item is in the core, by item code [items].
        first_index: Item index of the domain's first item; the others follow by code.
    """
    rows, user_ids = table
    index_by_code = np.cumsum(item_mask) - 1 + first_index
    return rows.with_columns(item=pl.Series(index_by_code[rows["item"].to_numpy()])), user_ids


def _prepare_blocks(
    domain_tables: Sequence[Sequence[Ref]],
    num_blocks: int,
    items: pl.DataFrame,
    dropped: Counter[str],
    quarantined: tuple[QuarantinedRows, ...],
    data: DataSettings,
) -> RayPrepared:
    """Joins the domains' ranges of users into blocks, and counts over them.

    Args:
        domain_tables: Refs of each domain's interactions, with item indices, for each range.
        num_blocks: Number of blocks, a power of two.
        items: Items of all domains, a frame of ITEMS_SCHEMA.
        dropped: Rows left out so far, counted by reason.
        quarantined: Rows that cannot be used.
        data: Settings of the build.

    Raises:
        DataError: A user leaves too few items of a domain to draw negatives from.
    """
    item_table = ray.put(items.drop("title").to_arrow())
    item_counts = count_items(group_item_indices(items))
    # Both numbers are powers of two, and the core has no more rows than were partitioned, so each
    # block is a whole number of ranges.
    ranges_per_block = len(domain_tables[0]) // num_blocks
    block_tables = [
        [
            table
            for tables in domain_tables
            for table in tables[number * ranges_per_block : (number + 1) * ranges_per_block]
        ]
        for number in range(num_blocks)
    ]
    block_refs = [
        submit(_build_block, number, item_counts, item_table, data, *tables, num_returns=2)
        for number, tables in enumerate(block_tables)
    ]
    blocks = sample_files.collect_blocks(
        block_refs, num_blocks, item_counts, data.num_candidates - 1
    )
    return RayPrepared(
        items, dropped, quarantined, blocks.counts_by_domain, blocks.sample_bounds, blocks
    )


def _build_block(
    number: int,
    item_counts: Mapping[str, int],
    items: pa.Table,
    data: DataSettings,
    *tables: DomainInteractions,
) -> tuple[pa.Table, BlockStatistics]:
    """Builds the block of a range of users from its tables of all domains.

    Args:
        number: Number of the block, and of the file that gets its interactions.
        item_counts: Items of each domain.
        items: Items of all domains: item_index, domain, item_id; row i is item i.
        data: Settings of the build.
        tables: Interactions with item indices.

    Returns:
        The results of `corpus.distributed.sample_files.build_block`.
    """
    # Take only the items that occur, and let the rows point into those.
    used = np.unique(np.concatenate([rows["item"].to_numpy() for rows, _ in tables]))
    recoded = [
        (
            rows.select(
                "user",
                "timestamp",
                item=pl.Series(np.searchsorted(used, rows["item"].to_numpy()), dtype=pl.UInt32),
            ),
            user_ids,
        )
        for rows, user_ids in tables
    ]
    interactions = EncodedInteractions.from_domains(recoded, pl.DataFrame(items.take(used)))
    return sample_files.build_block(interactions, number, item_counts, data)

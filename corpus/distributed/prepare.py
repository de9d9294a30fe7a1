"""Reads, cleans and numbers all domains of a build, on Ray.

Interactions are in tables in Ray's object store, which spills to disk when it is full.

1. A task reads a split of a file and leaves out the rows that are unusable by themselves.
2. The tables of all splits are partitioned by ranges of the users' hashes. A task on one range then
   leaves out repeated interactions, and those beyond a user's cap.
3. The k-core of each domain is computed (`corpus.distributed.kcore`).
4. The ranges of all domains are joined into the blocks that samples are made of.

Items stay in the driver: they are far fewer than interactions, and their titles have to differ
within a domain.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cluster.console import Say
from corpus.backend import Prepared, UncommittedSamples
from corpus.distributed import sample_files
from corpus.distributed.kcore import KCore, compute_kcore
from corpus.distributed.sample_files import BlockStatistics, InteractionBlocks
from corpus.distributed.tasks import Ref, get_results, submit, submit_generator
from corpus.ingest import cleaning, quarantine, raw_data
from corpus.ingest.kcore import empty_core_error
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.sources import file_splits, layout
from corpus.ingest.sources.file_splits import FileSplit
from corpus.local import append as local_append
from corpus.local import prepare as local_prepare
from corpus.sampling import hashing
from corpus.sampling.encoded_interactions import (
    DomainInteractions,
    EncodedInteractions,
    encode_values,
    remove_unused_categories,
)
from corpus.settings import DataSettings
from corpus.store import stored_interactions
from corpus.store.catalogue import count_items, group_item_indices

ROWS_PER_RESULT = 1 << 13
"""Rows of a range in one result of a partitioning task, on average.

Ray would keep much smaller results in the memory of the driver.
"""


@dataclass(frozen=True)
class RayPrepared(Prepared):
    """The behaviours of a build after cleaning and k-core, in Ray's object store.

    Attributes:
        blocks: Interactions of all domains, by ranges of users.
    """

    blocks: InteractionBlocks

    def write_sample_files(self, data: DataSettings, seed: int, uri: str) -> UncommittedSamples:
        """Makes all samples of version 0 and writes its files; see `Prepared`."""
        return self.blocks.write_sample_files(self.item_indices(), data, seed, uri)


@dataclass(frozen=True)
class DomainTables:
    """A domain after reading, before its interactions are partitioned.

    Attributes:
        tables: Refs of its usable interactions (DomainInteractions), in the order of the files.
            Their column `item` holds row numbers of `items`.
        table_rows: Number of rows of each table.
        items: Items that have a title (columns item_id and title), sorted by item_id.
        dropped: Number of rows left out, by reason, quarantined ones included.
        quarantined: The unusable rows.
    """

    tables: tuple[Ref, ...]
    table_rows: tuple[int, ...]
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]


@dataclass(frozen=True)
class _BlockReport:
    """What a reading task reports about one block of a file.

    Attributes:
        block: What the block's file is judged by, once all its blocks are read.
        rows: Usable rows.
        dropped: Other rows left out, by reason.
        quarantined: Unusable rows.
    """

    block: raw_data.BlockSummary
    rows: int
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]


def prepare_domains(data: DataSettings, say: Say) -> RayPrepared:
    """Reads and cleans every domain of a build, takes its k-core, and numbers its items.

    Raises:
        DataError: The behaviours cannot be used; the message names the domain or the file.
    """
    domains, range_count = read_domains(data, local_prepare.list_domains(data), say)
    items = [local_prepare.empty_items()]
    dropped = Counter[str]()
    quarantined: list[QuarantinedRows] = []
    tables_by_domain: list[list[Ref]] = []
    total_rows = 0
    for name in list(domains):
        domain = domains.pop(name)  # dropping its refs lets the object store free its tables
        tables, repeated = group_by_user_range(domain, range_count, data.max_per_user)
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
        stored_interactions.user_range_count(total_rows),
        pl.concat(items),
        dropped,
        tuple(quarantined),
        data,
    )


def read_domains(
    data: DataSettings,
    domains: Sequence[str],
    say: Say,
    known_items: Mapping[str, pl.DataFrame] | None = None,
) -> tuple[dict[str, DomainTables], int]:
    """Reads some domains, and leaves out the rows that are unusable by themselves.

    Args:
        data: Settings that say where the files are.
        domains: Names of the domains.
        say: Receives progress lines.
        known_items: Items of an existing corpus (item_id, title), by domain. They have a title
            even if the files give none.

    Returns:
        The domains, and how many ranges of users to partition their interactions into.
    """
    tables_by_domain = {
        name: _read_domain(data, name, say, known_items=(known_items or {}).get(name))
        for name in domains
    }
    total_rows = sum(sum(domain.table_rows) for domain in tables_by_domain.values())
    return tables_by_domain, stored_interactions.user_range_count(total_rows)


def _read_domain(
    data: DataSettings, domain: str, say: Say, *, known_items: pl.DataFrame | None = None
) -> DomainTables:
    """Reads one domain, block by block; arguments are those of `read_domains`."""
    interaction_files, item_files = layout.find_files(data, domain)
    domain_items = raw_data.read_items(data, domain, item_files, say)
    items = domain_items.titles
    if known_items is not None:
        items = local_append.add_known_items(items, known_items)
    item_ids = ray.put((items["item_id"], domain_items.dropped_ids))
    latest = cleaning.latest_valid_timestamp(data)
    splits = [split for file in interaction_files for split in file_splits.split_file(file)]
    read = partial(_read_file_splits, domain, splits, item_ids, data, latest)
    reports, tables = read(zero_is_missing=False)
    ticks = layout.TICKS_PER_SECOND[layout.from_settings(data).time_unit]
    if raw_data.is_zero_missing([report.block for report in reports], ticks):
        # Only all files together show it, and it is rare: read them again.
        reports, tables = read(zero_is_missing=True)
    raw_data.check_files_agree(
        [report.block for report in reports], raw_data.interaction_columns(data), data, say
    )
    quarantined = quarantine.merge_blocks(
        (report.quarantined, report.block.file, report.block.rows) for report in reports
    )
    table_rows = tuple(report.rows for report in reports)
    dropped = sum((report.dropped for report in reports), Counter[str]())
    cleaning.check_quarantined_fraction(
        domain,
        quarantined,
        sum(table_rows) + dropped.total(),
        data,
        items["item_id"],
        domain_items.quarantined,
    )
    all_quarantined = (*quarantined, *domain_items.quarantined)
    local_prepare.report_quarantined(domain, all_quarantined, say)
    return DomainTables(
        tuple(tables),
        table_rows,
        items,
        dropped + domain_items.dropped + quarantine.count_by_reason(all_quarantined),
        all_quarantined,
    )


def _read_file_splits(
    domain: str,
    splits: Sequence[FileSplit],
    item_ids: Ref,
    data: DataSettings,
    latest: int,
    *,
    zero_is_missing: bool,
) -> tuple[list[_BlockReport], list[Ref]]:
    """Reads splits of files, each in a task; arguments are those of `_read_file_split`.

    Returns:
        A report for each block, and a ref of its usable interactions (DomainInteractions).
    """
    generators = [  # all tasks are started before the first result is awaited
        submit_generator(_read_file_split, domain, split, item_ids, data, latest, zero_is_missing)
        for split in splits
    ]
    reports: list[_BlockReport] = []
    tables: list[Ref] = []
    for generator in generators:
        refs = list(generator)  # a report and a table in turn, for each block
        reports += get_results(refs[::2])
        tables += refs[1::2]
    return reports, tables


def _read_file_split(
    domain: str,
    file_split: FileSplit,
    item_ids: tuple[pl.Series, pl.Series],
    data: DataSettings,
    latest: int,
    zero_is_missing: bool,
) -> Iterator[_BlockReport | DomainInteractions]:
    """Reads a split of a file; yields of every block a report, then its usable interactions.

    Args:
        domain: Name of the domain.
        file_split: The split.
        item_ids: Ids of the domain's items that have a title, ascending, and of those that
            `data.speaking_titles` drops.
        data: Settings that say how the files are to be read.
        latest: Time after which a timestamp is unusable, in unix seconds.
        zero_is_missing: Whether the time 0 stands for none.
    """
    titled_item_ids, dropped_item_ids = item_ids
    for block in raw_data.read_blocks(file_split, raw_data.interaction_columns(data), data):
        usable = cleaning.select_usable(
            domain,
            raw_data.encode_blocks([(file_split.file, block)]),
            titled_item_ids,
            data,
            latest,
            dropped_item_ids=dropped_item_ids,
            zero_is_missing=zero_is_missing,
        )
        user, user_ids = remove_unused_categories(usable.interactions["user"], usable.user_ids)
        rows = usable.interactions.select("item", "timestamp", user=user)
        yield _BlockReport(
            raw_data.summarize_block(file_split.file, block),
            rows.height,
            usable.dropped,
            usable.quarantined,
        )
        yield rows, user_ids


def group_by_user_range(
    domain: DomainTables, range_count: int, max_per_user: int
) -> tuple[list[Ref], Counter[str]]:
    """Partitions a domain's interactions by ranges of users, then deduplicates and caps them.

    Args:
        domain: The domain, as it was read.
        range_count: Number of ranges, a power of two.
        max_per_user: Interactions of a user, at most; the most recent are kept.

    Returns:
        Refs of the interactions (DomainInteractions), one for each range, and the rows left out,
        by reason.
    """
    # A task partitions several tables, so that its results are not too small.
    batches: list[list[Ref]] = [[]]
    batch_rows = 0
    for table, height in zip(domain.tables, domain.table_rows, strict=True):
        if batch_rows >= ROWS_PER_RESULT * range_count:
            batches.append([])
            batch_rows = 0
        batches[-1].append(table)
        batch_rows += height
    partitioned = [
        submit(_split_by_user_range, range_count, 0, range_count, *batch, num_returns=range_count)
        for batch in batches
    ]
    # A task with one result gives a ref, not a list of them.
    by_range = [partitioned] if range_count == 1 else zip(*partitioned, strict=True)
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
    range_count = len(tables) * factor
    return [
        part
        for i, table in enumerate(tables)
        for part in submit(
            _split_by_user_range,
            range_count,
            i * factor,
            (i + 1) * factor,
            table,
            num_returns=factor,
        )
    ]


def _split_by_user_range(
    range_count: int, low: int, high: int, *tables: DomainInteractions
) -> DomainInteractions | list[DomainInteractions]:
    """Joins tables and splits them by ranges of user hashes.

    Args:
        range_count: Number of ranges that the hashes are divided into.
        low: The first range that has users of the tables.
        high: One past the last such range.
        tables: The interactions.

    Returns:
        The interactions of each range low .. high - 1; of a single range its table, not a list.
    """
    rows, user_ids = _concat_tables(tables)
    range_by_user = hashing.hash_range_indices(hashing.hash_strings(user_ids), range_count)
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


def _nonempty_core(domain: str, tables: Sequence[Ref], rows: int, k: int, item_count: int) -> KCore:
    """Computes the k-core of a domain of `rows` interactions; raises DataError if it is empty."""
    core = compute_kcore(tables, k, item_count)
    if not core.rows:
        raise empty_core_error(
            domain,
            k,
            rows,
            lambda smaller_k: not compute_kcore(tables, smaller_k, item_count).rows,
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
    block_count: int,
    items: pl.DataFrame,
    dropped: Counter[str],
    quarantined: tuple[QuarantinedRows, ...],
    data: DataSettings,
) -> RayPrepared:
    """Joins the domains' ranges of users into blocks, and counts over them.

    Args:
        domain_tables: Refs of each domain's interactions, with item indices, for each range.
        block_count: Number of blocks, a power of two.
        items: Items of all domains, a frame of ITEMS_SCHEMA.
        dropped: Rows left out so far, by reason.
        quarantined: The unusable rows.
        data: Settings of the build.

    Raises:
        DataError: A user leaves too few items of a domain to draw negatives from.
    """
    item_table = ray.put(items.drop("title").to_arrow())
    item_counts = count_items(group_item_indices(items))
    # Both numbers are powers of two, and the core has no more rows than were partitioned, so each
    # block is a whole number of ranges.
    ranges_per_block = len(domain_tables[0]) // block_count
    block_tables = [
        [
            table
            for tables in domain_tables
            for table in tables[number * ranges_per_block : (number + 1) * ranges_per_block]
        ]
        for number in range(block_count)
    ]
    block_refs = [
        submit(_build_block, number, item_counts, item_table, data, *tables, num_returns=2)
        for number, tables in enumerate(block_tables)
    ]
    blocks = sample_files.collect_blocks(
        block_refs, block_count, item_counts, data.num_candidates - 1
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

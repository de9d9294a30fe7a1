"""Reads domains in tasks, and leaves out the rows that are unusable by themselves."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl
import ray

from cluster.console import Say
from corpus.distributed.tasks import Ref, get_results, submit_generator
from corpus.ingest import cleaning, data_roots, file_checks, quarantine, raw_data
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.sources import file_splits, layout
from corpus.ingest.sources.file_splits import FileSplit
from corpus.local import append as local_append
from corpus.local import prepare as local_prepare
from corpus.sampling.encoded_interactions import DomainInteractions, remove_unused_categories
from corpus.settings import DataSettings
from corpus.store import stored_interactions


@dataclass(frozen=True)
class DomainTables:
    """A domain after reading, before its interactions are partitioned.

    Attributes:
        tables: Refs of its usable interactions (DomainInteractions), in the order of the files.
            Their column `item` holds row numbers of `items`.
        table_rows: Number of rows of each table.
        items: Items that have a title (columns item_id and title), sorted by item_id.
        dropped: Rows left out, counted by reason; those in `quarantined` are included.
        quarantined: Rows that cannot be used.
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

    block: file_checks.BlockSummary
    rows: int
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]


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
    return tables_by_domain, stored_interactions.count_user_ranges(total_rows)


def _read_domain(
    data: DataSettings, domain: str, say: Say, *, known_items: pl.DataFrame | None = None
) -> DomainTables:
    """Reads one domain, block by block; arguments are those of `read_domains`."""
    data = data_roots.at_root(data, domain)
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
    if file_checks.is_zero_missing([report.block for report in reports], ticks):
        # Only all files together show it, and it is rare: read them again.
        reports, tables = read(zero_is_missing=True)
    file_checks.check_files_agree(
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
            `data.prompt_injection` drops.
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
            file_checks.summarize_block(file_split.file, block),
            rows.height,
            usable.dropped,
            usable.quarantined,
        )
        yield rows, user_ids

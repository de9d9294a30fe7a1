"""Reading, cleaning, k-core and numbering on Ray: pieces of files, then ranges of users, in Ray's object store, which goes to disk where it is full.

1. A piece of a file is read and cleaned by a task, where rows can be judged by themselves.
2. Pieces are spread over ranges of the users' hashes; a range leaves out what comes twice, and what is beyond a user's cap.
3. The k-core of each domain (`corpus.distributed.kcore`).
4. The ranges of all domains together become the blocks that samples are made of.
Items stay in the process that starts the build: they are far fewer than interactions, and their titles have to differ within a domain.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from corpus.local import append
from corpus.local import prepare as here
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
"""Interactions of a range in what one task spreads, on average: much smaller results would be kept by the process that asks for them."""


@dataclass(frozen=True)
class RayPrepared(Prepared):
    """What was gathered, on Ray."""

    blocks: InteractionBlocks

    def write_sample_files(self, data: DataSettings, seed: int, uri: str) -> UncommittedSamples:
        """Make and write all samples on Ray."""
        return self.blocks.write_sample_files(self.item_indices(), data, seed, uri)


@dataclass(frozen=True)
class _DomainRead:
    """A domain that is being read. pieces: refs of tables; rows: of each; items: item_id, title; dropped: by reason; quarantined: of that, what
    cannot be used."""

    tables: tuple[Ref, ...]
    table_rows: tuple[int, ...]
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]


def prepare_domains(data: DataSettings, say: Say) -> RayPrepared:
    """As `corpus.local.prepare.gather`. Raises DataError naming domain or file."""
    domains, ranges = read_domains(data, here.list_domains(data), say)
    items, dropped, found, total = [here.empty_items()], Counter[str](), list[list[Ref]](), 0
    quarantined: list[QuarantinedRows] = []
    for name in list(domains):
        of = domains.pop(name)  # what lies in the object store lies there as long as its refs live
        repeating, repeated = group_by_user_range(of, ranges, data.max_per_user)
        rows, first = sum(of.table_rows) - repeated.total(), sum(part.height for part in items)
        left = _nonempty_core(name, repeating, rows, data.k_core, of.items.height)
        numbered, renamed = here.number_items(name, of.items.filter(ray.get(left.item_mask)), first)
        items.append(numbered)
        total += left.rows
        found.append(
            [submit(_assign_item_indices, table, left.item_mask, first) for table in left.tables]
        )
        dropped += (
            of.dropped + repeated + Counter(k_core=rows - left.rows, title_made_distinct=renamed)
        )
        quarantined += of.quarantined
        say(here.format_progress(name, left.users, numbered.height, left.rows, data.k_core))
    return _prepare_blocks(
        found,
        stored_interactions.user_range_count(total),
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
) -> tuple[dict[str, _DomainRead], int]:
    """Domains that are being read, and how many ranges of users their interactions are to be spread over.

    known: of some domains item_id, title of items that have a title without being read.
    """
    found = {
        name: _read_domain(data, name, say, known_items=(known_items or {}).get(name))
        for name in domains
    }
    return found, stored_interactions.user_range_count(
        sum(sum(of.table_rows) for of in found.values())
    )


def _read_domain(
    data: DataSettings, domain: str, say: Say, *, known_items: pl.DataFrame | None = None
) -> _DomainRead:
    """Read all pieces of a domain, block by block, and leave out what cannot be used. known: as for `read`."""
    of_interactions, of_items = layout.find_files(data, domain)
    items = raw_data.read_items(data, domain, of_items, say)
    titles = (
        items.titles if known_items is None else append.add_known_items(items.titles, known_items)
    )
    titled, latest = ray.put(titles["item_id"]), cleaning.latest_valid_timestamp(data)
    cut = [piece for file in of_interactions for piece in file_splits.split_file(file)]
    seen, tables = list[_BlockReport](), list[Ref]()
    for of_piece in [
        submit_generator(_read_file_split, domain, piece, titled, data, latest) for piece in cut
    ]:
        refs = list(of_piece)
        seen += get_results(refs[::2])
        tables += refs[1::2]
    raw_data.check_files_agree(
        [of.block for of in seen], raw_data.interaction_columns(data), data, say
    )
    bad = quarantine.merge_blocks((of.quarantined, of.block.file, of.block.rows) for of in seen)
    rows, dropped = tuple(of.rows for of in seen), sum((of.dropped for of in seen), Counter[str]())
    cleaning.check_quarantined_fraction(domain, bad, sum(rows) + dropped.total(), data)
    every = (*bad, *items.quarantined)
    here.report_quarantined(domain, every, say)
    return _DomainRead(
        tuple(tables),
        rows,
        titles,
        dropped + items.dropped + quarantine.count_by_reason(every),
        every,
    )


@dataclass(frozen=True)
class _BlockReport:
    """What is told of a block. block: by which its file is judged; rows: that can be used; dropped, quarantined: what cannot."""

    block: raw_data.BlockSummary
    rows: int
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]


def _read_file_split(
    domain: str, file_split: FileSplit, titled_item_ids: pl.Series, data: DataSettings, latest: int
) -> Iterator[_BlockReport | DomainInteractions]:
    """Of every block of a piece: what is told of it, then the interactions that can be used."""
    for block in raw_data.read_blocks(file_split, raw_data.interaction_columns(data), data):
        found = cleaning.select_usable(
            domain,
            raw_data.encode_blocks([(file_split.file, block)]),
            titled_item_ids,
            data,
            latest,
        )
        user, users = remove_unused_categories(found.interactions["user"], found.user_ids)
        rows = found.interactions.select("item", "timestamp", user=user)
        yield _BlockReport(
            raw_data.summarize_block(file_split.file, block),
            rows.height,
            found.dropped,
            found.quarantined,
        )
        yield rows, users


def group_by_user_range(
    domain: _DomainRead, range_count: int, max_per_user: int
) -> tuple[list[Ref], Counter[str]]:
    """The interactions of a domain by ranges of users, each once and no user with more than so many; and what is left out."""
    together, rows = [list[Ref]()], 0
    for piece, height in zip(domain.tables, domain.table_rows, strict=True):
        if rows >= ROWS_PER_RESULT * range_count:
            together.append([])
            rows = 0
        together[-1].append(piece)
        rows += height
    spread = [
        submit(_split_by_user_range, range_count, 0, range_count, *tables, num_returns=range_count)
        for tables in together
    ]
    # A task with one result gives a ref, not a list of them.
    by_range = [spread] if range_count == 1 else zip(*spread, strict=True)
    cleaned = [
        submit(_deduplicate_and_cap, max_per_user, *tables, num_returns=2) for tables in by_range
    ]
    return [table for table, _ in cleaned], sum(
        get_results([repeated for _, repeated in cleaned]), Counter[str]()
    )


def subdivide_ranges(tables: Sequence[Ref], factor: int) -> list[Ref]:
    """Tables of so many times as many ranges of users, from those of all ranges."""
    if factor == 1:
        return list(tables)
    of = len(tables) * factor
    return [
        part
        for i, table in enumerate(tables)
        for part in submit(
            _split_by_user_range, of, i * factor, (i + 1) * factor, table, num_returns=factor
        )
    ]


def _split_by_user_range(
    range_count: int, low: int, high: int, *tables: DomainInteractions
) -> DomainInteractions | list[DomainInteractions]:
    """Interactions by ranges of their users, which all lie in the ranges low .. high - 1 of so many."""
    rows, users = _concat_tables(tables)
    of_user = hashing.hash_range_indices(hashing.hash_strings(users), range_count)
    place = of_user[rows["user"].to_numpy()]
    order = np.argsort(place, kind="stable")
    ends = np.searchsorted(place[order], np.arange(low, high + 1))
    found = []
    for first, stop in pairwise(ends):
        part = rows[order[first:stop]]
        user, names = remove_unused_categories(part["user"], users)
        found.append((part.with_columns(user=user), names))
    return found if len(found) > 1 else found[0]


def _deduplicate_and_cap(
    max_per_user: int, *tables: DomainInteractions
) -> tuple[DomainInteractions, Counter[str]]:
    rows, users = _concat_tables(tables)
    found, repeated = cleaning.deduplicate_and_cap(rows, max_per_user)
    return (found, users), repeated


def _concat_tables(tables: Sequence[DomainInteractions]) -> DomainInteractions:
    """Interactions of several tables, with one set of users' numbers."""
    users = pl.concat([users for _, users in tables]).unique()
    return pl.concat(
        [
            rows.with_columns(user=encode_values(names, users).gather(rows["user"]))
            for rows, names in tables
        ]
    ), users


def _nonempty_core(domain: str, tables: Sequence[Ref], rows: int, k: int, item_count: int) -> KCore:
    found = compute_kcore(tables, k, item_count)
    if not found.rows:
        raise empty_core_error(
            domain, k, rows, lambda less: not compute_kcore(tables, less, item_count).rows
        )
    return found


def _assign_item_indices(
    table: DomainInteractions, item_mask: NDArray[np.bool_], first_index: int
) -> DomainInteractions:
    """Interactions whose items are numbered as those of all domains are: the items that are left, by their order, from the domain's first on."""
    rows, users = table
    index = np.cumsum(item_mask) - 1 + first_index
    return rows.with_columns(item=pl.Series(index[rows["item"].to_numpy()])), users


def _prepare_blocks(
    domain_tables: Sequence[Sequence[Ref]],
    block_count: int,
    items: pl.DataFrame,
    dropped: Counter[str],
    quarantined: tuple[QuarantinedRows, ...],
    data: DataSettings,
) -> RayPrepared:
    """The blocks that samples are made of, and what is counted over them. found: of each domain the tables of all ranges; parts: blocks."""
    catalogue, sizes, wanted = (
        ray.put(items.drop("title").to_arrow()),
        count_items(group_item_indices(items)),
        data.num_candidates - 1,
    )
    width = (
        len(domain_tables[0]) // block_count
    )  # both are powers of two, and a core has no more rows than it was made of
    tables = [
        [table for of in domain_tables for table in of[number * width : (number + 1) * width]]
        for number in range(block_count)
    ]
    made = [
        submit(_build_block, number, sizes, catalogue, data, *of, num_returns=2)
        for number, of in enumerate(tables)
    ]
    blocks = sample_files.collect_blocks(made, block_count, sizes, wanted)
    return RayPrepared(
        items, dropped, quarantined, blocks.counts_by_domain, blocks.sample_bounds, blocks
    )


def _build_block(
    number: int,
    item_counts: Mapping[str, int],
    catalogue: pa.Table,
    data: DataSettings,
    *tables: DomainInteractions,
) -> tuple[pa.Table, BlockStatistics]:
    """The interactions of a range of users in all domains, by names; and what is counted of them."""
    used = np.unique(np.concatenate([rows["item"].to_numpy() for rows, _ in tables]))
    of_used = [
        pl.Series(np.searchsorted(used, rows["item"].to_numpy()), dtype=pl.UInt32)
        for rows, _ in tables
    ]
    numbered = [
        (rows.select("user", "timestamp", item=item), users)
        for (rows, users), item in zip(tables, of_used, strict=True)
    ]
    found = EncodedInteractions.from_domains(numbered, pl.DataFrame(catalogue.take(used)))
    return sample_files.build_block(found, number, item_counts, data)

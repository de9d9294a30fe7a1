"""Selects the interactions that an append adds to a corpus version, on Ray.

It is the counterpart of `corpus.local.append`.

1. The appended domains are read and partitioned by ranges of users, as in a build
   (`corpus.distributed.user_ranges`). The more interactions the corpus has of these users, the
   finer the ranges.
2. For each range, the corpus's interactions of its users are read. A task reads only the row groups
   that hold its users.
3. Each range of each domain is compared with them. The interactions that the corpus does not have
   go into the k-core, in which the corpus's users and items count as having k already.
4. The ranges of all domains, and the corpus's interactions of their users, are joined into the
   blocks that samples are made of.

Items stay in the driver, as in a build.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import ray

from cluster.console import Say
from corpus.backend import AppendDelta, AppendInput, UncommittedSamples, WriteSamples
from corpus.distributed import sample_files
from corpus.distributed.kcore import compute_kcore
from corpus.distributed.reading import read_domains
from corpus.distributed.sample_files import BlockStatistics
from corpus.distributed.tasks import Ref, get_results, submit
from corpus.distributed.user_ranges import group_by_user_range, subdivide_ranges
from corpus.local import append as local_append
from corpus.sampling.encoded_interactions import DomainInteractions, EncodedInteractions
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import catalogue, stored_interactions
from corpus.store.catalogue import count_items
from corpus.store.statistics import NewCounts
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class RayDomainDelta:
    """What an append adds to one domain.

    Attributes:
        tables: Refs of the added interactions (DomainInteractions), one for each range of users.
            Their items are indices into `item_ids`.
        rows: Added interactions in all ranges.
        item_ids: Ids of all items of the domain with a title, ascending: those of the corpus and
            of the input.
        items: Items of the added interactions (domain, item_id, title), by item_id. Items that are
            new to the corpus are numbered in this order.
        dropped: Rows left out since reading, counted by reason.
    """

    tables: tuple[Ref, ...]
    rows: int
    item_ids: pl.Series
    items: pl.DataFrame
    dropped: Counter[str]


@dataclass(frozen=True)
class RayAppendDelta(AppendDelta):
    """What an append adds to a corpus version, in Ray's object store.

    Attributes:
        domain_deltas: What it adds to each domain.
        existing: Refs of the corpus's interactions (EncodedInteractions), one for each range of
            users in the input.
        existing_rows: Interactions behind these refs.
    """

    domain_deltas: Mapping[str, RayDomainDelta]
    existing: tuple[Ref, ...]
    existing_rows: int

    def check(
        self, numbered_items: pl.DataFrame, item_indices: Mapping[str, IntArray]
    ) -> WriteSamples:
        """Checks that the samples of the next version can be made; see `AppendDelta`."""
        # For each kind of interactions its refs by range; the existing ones come first.
        refs_by_kind = [
            self.existing,
            *(
                self._encode_domain(name, delta, numbered_items)
                for name, delta in self.domain_deltas.items()
            ),
        ]
        # Files hold the new interactions only, so there may be fewer files than blocks.
        num_files = stored_interactions.count_user_ranges(self.rows)
        num_blocks = stored_interactions.count_user_ranges(self.rows + self.existing_rows)
        item_counts = count_items(item_indices)
        # All these numbers are powers of two, and no more rows are added than were read, so each
        # block is a whole number of ranges.
        ranges_per_block = len(self.existing) // num_blocks
        refs_by_block = [
            [
                ref
                for refs in refs_by_kind
                for ref in refs[number * ranges_per_block : (number + 1) * ranges_per_block]
            ]
            for number in range(num_blocks)
        ]
        block_refs = [
            submit(
                _build_block,
                number * num_files // num_blocks,
                item_counts,
                self.data,
                ranges_per_block,
                *refs,
                num_returns=2,
            )
            for number, refs in enumerate(refs_by_block)
        ]
        blocks = sample_files.collect_blocks(
            block_refs, num_files, item_counts, self.data.num_candidates - 1
        )

        def write(seed: int) -> tuple[UncommittedSamples, NewCounts]:
            samples = blocks.write_sample_files(item_indices, self.data, seed, self.corpus.uri)
            return samples, blocks.counts_by_domain

        return write

    def _encode_domain(
        self, domain: str, domain_delta: RayDomainDelta, numbered_items: pl.DataFrame
    ) -> list[Ref]:
        """Encodes a domain's interactions as new ones; returns refs of them, one for each range."""
        items = ray.put(
            local_append.find_item_indices(domain, domain_delta.item_ids, numbered_items)
        )
        return [
            submit(local_append.encode_as_version, self.corpus.version + 1, items, table)
            for table in domain_delta.tables
        ]


@dataclass(frozen=True)
class RayAppendInput(AppendInput):
    """The interactions that an append adds, which Ray reads from their files.

    Rows are judged as they are read, and the corpus version decides which items have a title. So an
    append that is overtaken reads its files again.
    """

    def compute_delta(self, corpus: Corpus, data: DataSettings, say: Say) -> RayAppendDelta:
        """Selects the interactions that the append adds to a version; see `AppendInput`."""
        known_items = {name: catalogue.read_domain_items(corpus, [name]) for name in self.domains}
        domains, num_ranges = read_domains(self.data, self.domains, say, known_items)
        quarantined = tuple(rows for domain in domains.values() for rows in domain.quarantined)
        tables: dict[str, list[Ref]] = {}
        items: dict[str, pl.DataFrame] = {}
        dropped: dict[str, Counter[str]] = {}
        read_rows = 0
        for name in self.domains:
            domain = domains.pop(name)  # dropping its refs lets the object store free its tables
            tables[name], repeated = group_by_user_range(domain, num_ranges, self.data.max_per_user)
            items[name] = domain.items
            dropped[name] = domain.dropped + repeated
            read_rows += sum(domain.table_rows)
        corpus_ref = ray.put(corpus)
        existing_rows = sum(
            get_results(
                [
                    submit(_count_existing, corpus_ref, *range_tables)
                    for range_tables in zip(*tables.values(), strict=True)
                ]
            )
        )
        # The size of a range includes what the corpus has of its users.
        factor = stored_interactions.count_user_ranges(read_rows + existing_rows) // num_ranges
        tables = {name: subdivide_ranges(coarse, factor) for name, coarse in tables.items()}
        existing = tuple(
            submit(_read_existing, corpus_ref, *range_tables)
            for range_tables in zip(*tables.values(), strict=True)
        )
        deltas = {
            name: _compute_domain_delta(
                name, tables.pop(name), existing, items[name], known_items[name], data, say
            )
            for name in self.domains
        }
        return RayAppendDelta(
            corpus,
            data,
            sum(delta.rows for delta in deltas.values()),
            pl.concat([delta.items for delta in deltas.values()]),
            sum((dropped[name] + delta.dropped for name, delta in deltas.items()), Counter[str]()),
            quarantined,
            deltas,
            existing,
            existing_rows,
        )


def _compute_domain_delta(
    domain: str,
    tables: Sequence[Ref],
    existing: Sequence[Ref],
    items: pl.DataFrame,
    known_items: pl.DataFrame,
    data: DataSettings,
    say: Say,
) -> RayDomainDelta:
    """Selects the interactions of one domain that the append adds to a version.

    Args:
        domain: Name of the domain.
        tables: Refs of its usable interactions (DomainInteractions), one for each range of users.
        existing: Refs of the corpus's interactions (EncodedInteractions), one for each range.
        items: Items that have a title, by item_id, which the items in `tables` refer to.
        known_items: The corpus's items of the domain.
        data: Settings of the corpus.
        say: Receives progress lines.

    Raises:
        DataError: The core of a new domain is empty.
    """
    item_ids, k = items["item_id"], data.k_core
    item_ids_ref = ray.put(item_ids)
    results = [
        submit(
            local_append.find_new_interactions,
            domain,
            item_ids_ref,
            table,
            range_existing,
            num_returns=3,
        )
        for table, range_existing in zip(tables, existing, strict=True)
    ]
    new = [table for table, _, _ in results]
    known_users = [users for _, users, _ in results]
    counts = get_results([range_counts for _, _, range_counts in results])
    num_existing = sum(existing_rows for existing_rows, _ in counts)
    num_new = sum(new_rows for _, new_rows in counts)
    item_has_k = ray.put(item_ids.is_in(known_items["item_id"].implode()).to_numpy())
    core = compute_kcore(new, k, item_ids.len(), known_users, item_has_k)
    if not core.rows and known_items.is_empty():
        raise local_append.empty_core_error(
            domain,
            k,
            num_new,
            lambda smaller_k: not compute_kcore(new, smaller_k, item_ids.len()).rows,
        )
    added_items = items.filter(ray.get(core.item_mask))
    say(local_append.format_progress(domain, core.rows, core.users, added_items.height))
    return RayDomainDelta(
        core.tables,
        core.rows,
        item_ids,
        local_append.to_numbering_order(domain, added_items),
        Counter(already_in_corpus=num_existing, k_core=num_new - core.rows),
    )


def _count_existing(corpus: Corpus, *tables: DomainInteractions) -> int:
    """Counts the corpus's interactions of the users in some tables."""
    return stored_interactions.count_user_interactions(corpus, _join_user_ids(tables))


def _read_existing(corpus: Corpus, *tables: DomainInteractions) -> EncodedInteractions:
    """Reads the corpus's interactions of the users in some tables."""
    return stored_interactions.read_user_interactions(corpus, _join_user_ids(tables), {})


def _join_user_ids(tables: Sequence[DomainInteractions]) -> pl.Series:
    """Returns the ids of all users in some tables, each once."""
    return pl.concat([user_ids for _, user_ids in tables]).unique()


def _build_block(
    file_number: int,
    item_counts: Mapping[str, int],
    data: DataSettings,
    num_existing: int,
    *interactions: EncodedInteractions,
) -> tuple[pa.Table, BlockStatistics]:
    """Builds the block of a range of users: their new interactions and all their existing ones.

    Args:
        file_number: Number of the file that gets the new interactions.
        item_counts: Items of each domain.
        data: Settings that name all domains of the corpus.
        num_existing: How many of `interactions`, from the first on, are existing ones; these may
            include users without new ones.
        interactions: Existing interactions, then new ones.

    Returns:
        The results of `corpus.distributed.sample_files.build_block`.
    """
    return sample_files.build_block(
        local_append.add_existing(interactions[:num_existing], interactions[num_existing:]),
        file_number,
        item_counts,
        data,
    )

"""What `corpus.local.append` does in one process, on Ray.

1. The domains that are appended are read and spread over ranges of users as those of a build are (`corpus.distributed.prepare`); over finer ones, the
   more the corpus has of these users.
2. For each range, what the corpus has of its users is read from the kept files: a task sees the row groups of its own users.
3. Each range of each domain is compared with it; what is not there yet goes into the k-core, in which users and items of the corpus have k already.
4. The ranges of all domains together, and what their users have in the corpus, become the blocks that samples are made of.
Items stay in the process that starts the append, as in a build.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import ray

from cluster.console import Say
from corpus.backend import AppendDelta, AppendInput, UncommittedSamples
from corpus.distributed import prepare, sample_files
from corpus.distributed.kcore import compute_kcore
from corpus.distributed.sample_files import BlockStatistics
from corpus.distributed.tasks import Ref, get_results, submit
from corpus.local import append
from corpus.sampling.encoded_interactions import DomainInteractions, EncodedInteractions
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import stored_interactions
from corpus.store.catalogue import count_items
from corpus.store.statistics import NewCounts
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class DomainDelta:
    """What comes in of one domain. ranges: refs of tables; rows: in them; ids: of their items' numbers, ascending; items, dropped: as in Coming."""

    tables: tuple[Ref, ...]
    rows: int
    item_ids: pl.Series
    items: pl.DataFrame
    dropped: Counter[str]


@dataclass(frozen=True)
class RayAppendDelta(AppendDelta):
    """On Ray. parts: by domain; old: of each range a ref of what its users have in the corpus; behind: how much that is, over all."""

    domain_deltas: Mapping[str, DomainDelta]
    existing: tuple[Ref, ...]
    existing_rows: int

    def write_sample_files(
        self, numbered_items: pl.DataFrame, item_indices: Mapping[str, IntArray], seed: int
    ) -> tuple[UncommittedSamples, NewCounts]:
        """As for Coming."""
        found = [
            self.existing,
            *(
                self._encode_domain(name, part, numbered_items)
                for name, part in self.domain_deltas.items()
            ),
        ]
        files, count, sizes = (
            stored_interactions.user_range_count(self.rows),
            stored_interactions.user_range_count(self.rows + self.existing_rows),
            count_items(item_indices),
        )
        width = (
            len(self.existing) // count
        )  # all are powers of two, and no more rows come in than were read
        of_blocks = [
            [coded for of in found for coded in of[number * width : (number + 1) * width]]
            for number in range(count)
        ]
        made = [
            submit(
                _build_block, number * files // count, sizes, self.data, width, *of, num_returns=2
            )
            for number, of in enumerate(of_blocks)
        ]
        blocks = sample_files.collect_blocks(made, files, sizes, self.data.num_candidates - 1)
        return blocks.write_sample_files(
            item_indices, self.data, seed, self.corpus.uri
        ), blocks.counts_by_domain

    def _encode_domain(
        self, domain: str, domain_delta: DomainDelta, numbered_items: pl.DataFrame
    ) -> list[Ref]:
        there = ray.put(append.find_item_indices(domain, domain_delta.item_ids, numbered_items))
        return [
            submit(append.encode_as_version, self.corpus.version + 1, there, table)
            for table in domain_delta.tables
        ]


@dataclass(frozen=True)
class RayAppendInput(AppendInput):
    """On Ray. Which items have a title follows from the version, and rows are judged by it as they are read: so an append that was overtaken does all
    of it again, on the newer version."""

    def compute_delta(self, corpus: Corpus, data: DataSettings, say: Say) -> RayAppendDelta:
        """As for Given."""
        known = {name: append.read_known_items(corpus, name) for name in self.domains}
        read, ranges = prepare.read_domains(self.data, self.domains, say, known)
        tables, dropped, items, rows = (
            dict[str, list[Ref]](),
            dict[str, Counter[str]](),
            dict[str, pl.DataFrame](),
            0,
        )
        quarantined = tuple(bad for of in read.values() for bad in of.quarantined)
        for name in self.domains:
            of = read.pop(name)  # what lies in the object store lies there as long as its refs live
            tables[name], repeated = prepare.group_by_user_range(of, ranges, self.data.max_per_user)
            items[name], dropped[name], rows = (
                of.items,
                of.dropped + repeated,
                rows + sum(of.table_rows),
            )
        there = ray.put(corpus)
        behind = sum(
            get_results(
                [
                    submit(_count_existing, there, *of_range)
                    for of_range in zip(*tables.values(), strict=True)
                ]
            )
        )
        # Ranges with about so many interactions each, what the corpus has of their users among them.
        times = stored_interactions.user_range_count(rows + behind) // ranges
        tables = {name: prepare.subdivide_ranges(of, times) for name, of in tables.items()}
        old = tuple(
            submit(_read_existing, there, *of_range)
            for of_range in zip(*tables.values(), strict=True)
        )
        parts = {
            name: _compute_domain_delta(
                name, tables.pop(name), old, items[name], known[name], data, say
            )
            for name in self.domains
        }
        left_out = sum(
            (dropped[name] + part.dropped for name, part in parts.items()), Counter[str]()
        )
        come = pl.concat([part.items for part in parts.values()])
        return RayAppendDelta(
            corpus,
            data,
            sum(part.rows for part in parts.values()),
            come,
            left_out,
            quarantined,
            parts,
            old,
            behind,
        )


def _compute_domain_delta(
    domain: str,
    tables: Sequence[Ref],
    existing: Sequence[Ref],
    items: pl.DataFrame,
    known_items: pl.DataFrame,
    data: DataSettings,
    say: Say,
) -> DomainDelta:
    """What comes in of a domain. tables: of each range what could; items: what has a title, by item_id; known: what the corpus has of it."""
    ids, k = items["item_id"], data.k_core
    of_store = ray.put(ids)
    made = [
        submit(append.find_new_interactions, domain, of_store, table, behind, num_returns=3)
        for table, behind in zip(tables, existing, strict=True)
    ]
    fresh, users = [of[0] for of in made], [of[1] for of in made]
    already, rows = (
        sum(counts) for counts in zip(*get_results([of[2] for of in made]), strict=True)
    )
    left = compute_kcore(
        fresh, k, ids.len(), users, ray.put(ids.is_in(known_items["item_id"].implode()).to_numpy())
    )
    if not left.rows and known_items.is_empty():
        raise append.empty_core_error(
            domain, k, rows, lambda less: not compute_kcore(fresh, less, ids.len()).rows
        )
    come = items.filter(ray.get(left.item_mask))
    say(append.format_progress(domain, left.rows, left.users, come.height))
    return DomainDelta(
        left.tables,
        left.rows,
        ids,
        append.to_numbering_order(domain, come),
        Counter(already_in_corpus=already, k_core=rows - left.rows),
    )


def _count_existing(corpus: Corpus, *tables: DomainInteractions) -> int:
    """How many interactions a corpus has of the users of a range."""
    return stored_interactions.count_user_interactions(
        corpus, pl.concat([users for _, users in tables]).unique()
    )


def _read_existing(corpus: Corpus, *tables: DomainInteractions) -> EncodedInteractions:
    """What a corpus has of the users of a range."""
    return stored_interactions.read_user_interactions(
        corpus, pl.concat([users for _, users in tables]).unique(), {}
    )


def _build_block(
    file_number: int,
    item_counts: Mapping[str, int],
    data: DataSettings,
    existing_count: int,
    *interactions: EncodedInteractions,
) -> tuple[pa.Table, BlockStatistics]:
    """The new interactions of a range of users and all old ones of theirs, by names; and what is counted of them.

    found: first so many tables of old interactions, of these users and others; then the new ones.
    """
    return sample_files.build_block(
        append.add_existing(interactions[:existing_count], interactions[existing_count:]),
        file_number,
        item_counts,
        data,
    )

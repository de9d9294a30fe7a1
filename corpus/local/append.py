"""What of the behaviours that an append was given comes in on a version of a corpus; here in one process. The same on Ray: `corpus.distributed.append`.

Of each domain: interactions of an item with a title, given with them or known to the corpus, that are not there yet, as far as they are in the core
of what is there and they together (docs/decisions/004-append.md).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from cluster.console import Say
from cluster.errors import DataError
from corpus.backend import AppendDelta, AppendInput, UncommittedSamples
from corpus.ingest import cleaning, kcore, raw_data
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.raw_data import DomainItems, RawInteractions
from corpus.local.prepare import report_quarantined
from corpus.local.sample_files import check_enough_negatives, find_busiest_users, write_sample_files
from corpus.sampling.encoded_interactions import (
    DomainInteractions,
    EncodedInteractions,
    encode_values,
    remove_unused_categories,
)
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import catalogue, statistics, stored_interactions
from corpus.store.catalogue import count_items
from corpus.store.statistics import NewCounts
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class LocalAppendDelta(AppendDelta):
    """In this process. tables: of each domain its interactions, and the ids of their items' numbers; old: what the corpus has of their users, and of
    others."""

    tables_by_domain: Mapping[str, tuple[DomainInteractions, pl.Series]]
    existing: EncodedInteractions

    def write_sample_files(
        self, numbered_items: pl.DataFrame, item_indices: Mapping[str, IntArray], seed: int
    ) -> tuple[UncommittedSamples, NewCounts]:
        """As for Coming."""
        version = self.corpus.version + 1
        new = [
            encode_as_version(version, find_item_indices(domain, ids, numbered_items), table)
            for domain, (table, ids) in self.tables_by_domain.items()
        ]
        found, sizes, wanted = (
            add_existing([self.existing], new),
            count_items(item_indices),
            self.data.num_candidates - 1,
        )
        check_enough_negatives(find_busiest_users(found, sizes, wanted), sizes, wanted)
        return write_sample_files(
            found, item_indices, self.data, seed, self.corpus.uri
        ), statistics.count_new_by_domain(found.user_domain_counts)


@dataclass(frozen=True)
class LocalAppendInput(AppendInput):
    """In this process, which reads them once, and the old interactions of each kept file once, however many versions they are compared with."""

    raw_by_domain: dict[str, tuple[RawInteractions, DomainItems]] = field(default_factory=dict)
    existing_by_file: dict[str, EncodedInteractions] = field(default_factory=dict)

    def compute_delta(self, corpus: Corpus, data: DataSettings, say: Say) -> LocalAppendDelta:
        """As for Given."""
        old = stored_interactions.read_user_interactions(
            corpus, self._read_users(say), self.existing_by_file
        )
        grown = [
            _compute_domain_delta(corpus, name, *of, old, data, say)
            for name, of in self.raw_by_domain.items()
        ]
        tables, items, dropped, quarantined = zip(*grown, strict=True)
        rows, left_out = sum(table.height for (table, _), _ in tables), sum(dropped, Counter[str]())
        return LocalAppendDelta(
            corpus,
            data,
            rows,
            pl.concat(items),
            left_out,
            sum(quarantined, ()),
            dict(zip(self.raw_by_domain, tables, strict=True)),
            old,
        )

    def count_existing(self, corpus: Corpus, expected: int, say: Say) -> int:
        """Interactions that a corpus has of the users; 0 where all of it, with those expected, would not be too many for this process."""
        there = sum(file.rows for file in stored_interactions.list_files(corpus))
        return (
            stored_interactions.count_user_interactions(corpus, self._read_users(say))
            if there + expected > self.data.distribute_above
            else 0
        )

    def _read_users(self, say: Say) -> pl.Series:
        for name in self.domains:
            if name not in self.raw_by_domain:
                self.raw_by_domain[name] = raw_data.read_domain(self.data, name, say)
        return pl.concat([of.user_ids for of, _ in self.raw_by_domain.values()]).unique()


def read_known_items(corpus: Corpus, domain: str) -> pl.DataFrame:
    """The items of a domain that a version of a corpus has: item_index, domain, item_id, title."""
    numbers = catalogue.decode_runs(corpus.commits[-1].metadata["item_runs"]).get(domain, ())
    there = pl.Series(numbers, dtype=pl.Int64)
    return catalogue.read_domain_items(corpus.uri, [domain]).filter(
        pl.col("item_index").is_in(there.implode())
    )


def add_known_items(items: pl.DataFrame, known_items: pl.DataFrame) -> pl.DataFrame:
    """The items of a domain that have a title: item_id, title, by item_id, of those that came with interactions, and of those known that did not."""
    return pl.concat(
        [items, known_items.select("item_id", "title").join(items, on="item_id", how="anti")]
    ).sort("item_id")


def to_numbering_order(domain: str, items: pl.DataFrame) -> pl.DataFrame:
    """Items of a domain that come in, of item_id and title, as in Coming."""
    return items.sort("item_id").select(pl.lit(domain).alias("domain"), "item_id", "title")


def format_progress(domain: str, rows: int, users: int, items: int) -> str:
    """A domain's line of progress."""
    return f"{domain}: {rows:,} new interactions of {users:,} users and {items:,} items"


def empty_core_error(domain: str, k: int, rows: int, is_empty: Callable[[int], bool]) -> DataError:
    """What to tell of a new domain whose core is empty. Arguments: as for `corpus.ingest.kcore.empty`."""
    return DataError(
        f"{kcore.empty_core_error(domain, k, rows, is_empty)}{', and a corpus keeps the one it was built with' if rows else ''}"
    )


def find_new_interactions(
    domain: str, item_ids: pl.Series, table: DomainInteractions, existing: EncodedInteractions
) -> tuple[DomainInteractions, pl.Series, tuple[int, int]]:
    """The interactions of a range that the corpus has not, the users that it has in the domain; and how many it had and had not.

    ids: of the items by number; old: what the corpus has of the range's users in all domains.
    """
    rows, users = table
    item = encode_values(existing.items["item_id"], item_ids).set(
        existing.items["domain"].cast(pl.String) != domain, None
    )
    user = encode_values(existing.users["user_id"], users)
    there = existing.rows.select(
        "timestamp",
        user=user.gather(existing.rows["user"]),
        item=item.gather(existing.rows["item"]),
    ).drop_nulls()
    fresh = rows.join(there, on=["user", "item", "timestamp"], how="anti", maintain_order="left")
    known = users.gather(there["user"].unique())
    left, names = remove_unused_categories(fresh["user"], users)
    return (fresh.with_columns(user=left), names), known, (rows.height - fresh.height, fresh.height)


def encode_as_version(
    version: int, items: pa.Table, table: DomainInteractions
) -> EncodedInteractions:
    """Interactions of a domain as those of a version. catalogue: domain, item_id and item_index of the items by their numbers."""
    rows, users = table
    used, item = np.unique(rows["item"].to_numpy(), return_inverse=True)
    numbered = rows.select("user", "timestamp", item=pl.Series(item, dtype=pl.UInt32))
    return EncodedInteractions.from_domains(
        [(numbered, users)], pl.DataFrame(items.take(used)), version
    )


def find_item_indices(domain: str, item_ids: pl.Series, numbered_items: pl.DataFrame) -> pa.Table:
    """domain, item_id and item_index of a domain's items, by their places among ids; the last is null of items that do not come in."""
    named = pl.DataFrame({"item_id": item_ids}).with_columns(domain=pl.lit(domain))
    found = named.join(
        numbered_items.select("domain", "item_id", "item_index"),
        on=["domain", "item_id"],
        how="left",
        maintain_order="left",
    )
    return found.to_arrow()


def add_existing(
    existing: Sequence[EncodedInteractions], new: Sequence[EncodedInteractions]
) -> EncodedInteractions:
    """New interactions, and all old ones of their users."""
    users = pl.concat([of.users["user_id"] for of in new]).unique()
    return EncodedInteractions.concat([*(of.filter_users(users) for of in existing), *new])


def _compute_domain_delta(
    corpus: Corpus,
    domain: str,
    raw: RawInteractions,
    items: DomainItems,
    existing: EncodedInteractions,
    data: DataSettings,
    say: Say,
) -> tuple[
    tuple[DomainInteractions, pl.Series], pl.DataFrame, Counter[str], tuple[QuarantinedRows, ...]
]:
    """A domain's part of what comes in: of `tables` of Come; `items`, `dropped` and `quarantined` of Coming."""
    of_corpus = read_known_items(corpus, domain)
    titles = add_known_items(items.titles, of_corpus)
    ids, k = titles["item_id"], data.k_core
    cleaned = cleaning.clean_interactions(domain, raw, ids, data)
    quarantined = (*cleaned.quarantined, *items.quarantined)
    report_quarantined(domain, quarantined, say)
    (fresh, names), known_users, (already, rows) = find_new_interactions(
        domain, ids, (cleaned.interactions, cleaned.user_ids), existing
    )
    user, item = fresh["user"].to_numpy(), fresh["item"].to_numpy()
    has_k = (
        names.is_in(known_users.implode()).to_numpy(),
        ids.is_in(of_corpus["item_id"].implode()).to_numpy(),
    )
    core = fresh[kcore.k_core_rows(user, item, k, *has_k)]
    if core.is_empty() and of_corpus.is_empty():
        raise empty_core_error(
            domain, k, rows, lambda less: not kcore.k_core_rows(user, item, less).size
        )
    number, users = remove_unused_categories(core["user"], names)
    come = titles[np.unique(core["item"].to_numpy())]
    dropped = (
        cleaned.dropped_and_quarantined
        + items.dropped_and_quarantined
        + Counter(already_in_corpus=already, k_core=rows - core.height)
    )
    say(format_progress(domain, core.height, users.len(), come.height))
    return (
        ((core.with_columns(user=number), users), ids),
        to_numbering_order(domain, come),
        dropped,
        quarantined,
    )

"""Selects the interactions that an append adds to a corpus version, in one process.

Of each domain an append adds interactions that

- are of an item with a title, given in the input or known to the corpus;
- are not in the corpus yet;
- are in the k-core of the corpus and the new interactions together
  (docs/decisions/004-append.md).

The public functions below the classes are shared with `corpus.distributed.append`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from cluster.console import Say
from cluster.errors import DataError
from corpus.backend import AppendDelta, AppendInput, UncommittedSamples, WriteSamples
from corpus.ingest import cleaning, data_roots, kcore, raw_data
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.raw_data import DomainItems, RawInteractions
from corpus.local.negatives import check_enough_negatives, find_busiest_users
from corpus.local.prepare import report_quarantined
from corpus.local.sample_files import write_sample_files
from corpus.sampling.encoded_interactions import (
    DomainInteractions,
    EncodedInteractions,
    encode_values,
    remove_unused_categories,
)
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import catalogue, stored_interactions
from corpus.store.catalogue import count_items
from corpus.store.statistics import NewCounts
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class LocalDomainDelta:
    """What an append adds to one domain.

    Attributes:
        interactions: The added interactions. Their items are indices into `item_ids`.
        item_ids: Ids of all items of the domain with a title, ascending: those of the corpus and
            of the input.
        items: Items of the added interactions (domain, item_id, title), by item_id. Items that are
            new to the corpus are numbered in this order.
        dropped: Rows of the input that are left out, counted by reason; those in `quarantined` are
            included.
        quarantined: Rows of the input that cannot be used.
    """

    interactions: DomainInteractions
    item_ids: pl.Series
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]


@dataclass(frozen=True)
class LocalAppendDelta(AppendDelta):
    """What an append adds to a corpus version, in the memory of this process.

    Attributes:
        domain_deltas: What it adds to each domain.
        existing: The corpus's interactions of all users in the input.
    """

    domain_deltas: Mapping[str, LocalDomainDelta]
    existing: EncodedInteractions

    def check(
        self, numbered_items: pl.DataFrame, item_indices: Mapping[str, IntArray]
    ) -> WriteSamples:
        """Checks that the samples of the next version can be made; see `AppendDelta`."""
        new = [
            encode_as_version(
                self.corpus.version + 1,
                find_item_indices(name, delta.item_ids, numbered_items),
                delta.interactions,
            )
            for name, delta in self.domain_deltas.items()
        ]
        interactions = add_existing([self.existing], new)
        item_counts = count_items(item_indices)
        num_negatives = self.data.num_candidates - 1
        check_enough_negatives(
            find_busiest_users(interactions, item_counts, num_negatives),
            item_counts,
            num_negatives,
        )

        def write(seed: int) -> tuple[UncommittedSamples, NewCounts]:
            samples = write_sample_files(
                interactions, item_indices, self.data, seed, self.corpus.uri
            )
            return samples, interactions.count_new_by_domain()

        return write


@dataclass(frozen=True)
class LocalAppendInput(AppendInput):
    """The interactions that an append adds, read and kept in the memory of this process.

    Both caches are filled when they are first needed. So an append that is overtaken reads only
    what other processes have added to the corpus since.

    Attributes:
        raw_by_domain: Cache: the interactions of each domain, as they were read.
        existing_by_file: Cache: the interactions of the input's users in each file of the corpus.
    """

    raw_by_domain: dict[str, tuple[RawInteractions, DomainItems]] = field(default_factory=dict)
    existing_by_file: dict[str, EncodedInteractions] = field(default_factory=dict)

    def compute_delta(self, corpus: Corpus, data: DataSettings, say: Say) -> LocalAppendDelta:
        """Selects the interactions that the append adds to a version; see `AppendInput`."""
        existing = stored_interactions.read_user_interactions(
            corpus, self._read_users(say), self.existing_by_file
        )
        deltas = {
            name: _compute_domain_delta(corpus, name, raw, items, existing, data, say)
            for name, (raw, items) in self.raw_by_domain.items()
        }
        return LocalAppendDelta(
            corpus,
            data,
            sum(delta.interactions[0].height for delta in deltas.values()),
            pl.concat([delta.items for delta in deltas.values()]),
            sum((delta.dropped for delta in deltas.values()), Counter[str]()),
            tuple(rows for delta in deltas.values() for rows in delta.quarantined),
            deltas,
            existing,
        )

    def count_existing(self, corpus: Corpus, expected: int, say: Say) -> int:
        """Counts the corpus's interactions of the input's users, if that may decide the backend.

        Args:
            corpus: The version to append to.
            expected: Estimated interactions of the input.
            say: Receives progress lines.

        Returns:
            Their number; 0 without counting if even the whole corpus and the input together do not
            exceed `data.distribute_above`.
        """
        stored = sum(file.rows for file in stored_interactions.list_files(corpus))
        if stored + expected <= self.data.distribute_above:
            return 0
        return stored_interactions.count_user_interactions(corpus, self._read_users(say))

    def _read_users(self, say: Say) -> pl.Series:
        """Reads the domains that were not read before, and returns the ids of all users."""
        for name in self.domains:
            if name not in self.raw_by_domain:
                self.raw_by_domain[name] = raw_data.read_domain(self.data, name, say)
        return pl.concat([raw.user_ids for raw, _ in self.raw_by_domain.values()]).unique()


def add_known_items(items: pl.DataFrame, known_items: pl.DataFrame) -> pl.DataFrame:
    """Adds the corpus's items to those of the input.

    Args:
        items: Items of the input: item_id, title.
        known_items: Items of the corpus in the same domain.

    Returns:
        item_id, title, by item_id. An item that is in both has the title of the input.
    """
    return pl.concat(
        [items, known_items.select("item_id", "title").join(items, on="item_id", how="anti")]
    ).sort("item_id")


def to_numbering_order(domain: str, items: pl.DataFrame) -> pl.DataFrame:
    """Returns a domain's items (item_id, title) as `AppendDelta.items`, in numbering order."""
    return items.sort("item_id").select(pl.lit(domain).alias("domain"), "item_id", "title")


def format_progress(domain: str, rows: int, users: int, items: int) -> str:
    """Returns the progress line of a domain, with the counts of what is added."""
    return f"{domain}: {rows:,} new interactions of {users:,} users and {items:,} items"


def empty_core_error(
    domain: str, k: int, rows: int, is_core_empty: Callable[[int], bool]
) -> DataError:
    """Returns the error of an append whose new domain has an empty k-core.

    Arguments are those of `corpus.ingest.kcore.empty_core_error`.
    """
    error = kcore.empty_core_error(domain, k, rows, is_core_empty)
    # A smaller k, which the error advises, would need another corpus.
    advice = ", and a corpus keeps the data.k_core it was built with" if rows else ""
    return DataError(f"{error}{advice}")


def find_new_interactions(
    domain: str, item_ids: pl.Series, table: DomainInteractions, existing: EncodedInteractions
) -> tuple[DomainInteractions, pl.Series, tuple[int, int]]:
    """Finds the interactions of a domain that the corpus does not have yet.

    Args:
        domain: Name of the domain.
        item_ids: Ids of the domain's items with a title, which the items in `table` refer to.
        table: Interactions of some users in the domain.
        existing: The corpus's interactions of (at least) these users, in all domains.

    Returns:
        The new interactions; ids of the users whom the corpus knows in this domain; and the
        numbers of interactions that the corpus has and does not have.
    """
    rows, user_ids = table
    # The existing interactions, in the codes of `table`; null for other users, items and domains.
    item = encode_values(existing.items["item_id"], item_ids).set(
        existing.items["domain"].cast(pl.String) != domain, None
    )
    user = encode_values(existing.users["user_id"], user_ids)
    existing_rows = existing.rows.select(
        "timestamp",
        user=user.gather(existing.rows["user"]),
        item=item.gather(existing.rows["item"]),
    ).drop_nulls()
    new = rows.join(
        existing_rows, on=["user", "item", "timestamp"], how="anti", maintain_order="left"
    )
    known_users = user_ids.gather(existing_rows["user"].unique())
    new_user, new_user_ids = remove_unused_categories(new["user"], user_ids)
    return (
        (new.with_columns(user=new_user), new_user_ids),
        known_users,
        (rows.height - new.height, new.height),
    )


def encode_as_version(
    version: int, items: pa.Table, table: DomainInteractions
) -> EncodedInteractions:
    """Encodes the interactions of a domain as new ones of a corpus version.

    Args:
        version: Number of the version.
        items: Result of `find_item_indices`: row i is the item with code i.
        table: Interactions of some users in the domain.
    """
    rows, user_ids = table
    used, item = np.unique(rows["item"].to_numpy(), return_inverse=True)
    recoded = rows.select("user", "timestamp", item=pl.Series(item, dtype=pl.UInt32))
    return EncodedInteractions.from_domains(
        [(recoded, user_ids)], pl.DataFrame(items.take(used)), version
    )


def find_item_indices(domain: str, item_ids: pl.Series, numbered_items: pl.DataFrame) -> pa.Table:
    """Looks up the item indices of a domain's items.

    Args:
        domain: Name of the domain.
        item_ids: Ids of items.
        numbered_items: Items of all appended domains: domain, item_id, item_index.

    Returns:
        domain, item_id, item_index, in the order of `item_ids`. The index of an item that the
        append does not add is null.
    """
    items = pl.DataFrame({"item_id": item_ids}).with_columns(domain=pl.lit(domain))
    indexed = items.join(
        numbered_items.select("domain", "item_id", "item_index"),
        on=["domain", "item_id"],
        how="left",
        maintain_order="left",
    )
    return indexed.to_arrow()


def add_existing(
    existing: Sequence[EncodedInteractions], new: Sequence[EncodedInteractions]
) -> EncodedInteractions:
    """Joins new interactions and all existing ones of their users.

    Args:
        existing: The corpus's interactions of these users, and possibly of others.
        new: The new interactions.
    """
    user_ids = pl.concat([part.users["user_id"] for part in new]).unique()
    return EncodedInteractions.concat([*(part.filter_users(user_ids) for part in existing), *new])


def _compute_domain_delta(
    corpus: Corpus,
    domain: str,
    raw: RawInteractions,
    items: DomainItems,
    existing: EncodedInteractions,
    data: DataSettings,
    say: Say,
) -> LocalDomainDelta:
    """Selects the interactions of one domain that the append adds to a version.

    Args:
        corpus: The version to append to.
        domain: Name of the domain.
        raw: Its interactions, as they were read.
        items: Its items in the input.
        existing: The corpus's interactions of all users in the input.
        data: Settings of the corpus.
        say: Receives progress lines.

    Raises:
        DataError: Too many rows cannot be used, or the core of a new domain is empty.
    """
    known_items = catalogue.read_domain_items(corpus, [domain])
    titled_items = add_known_items(items.titles, known_items)
    item_ids = titled_items["item_id"]
    usable = cleaning.clean_interactions(
        domain,
        raw,
        item_ids,
        data_roots.at_root(data, domain),
        items.quarantined,
        items.dropped_ids,
    )
    quarantined = (*usable.quarantined, *items.quarantined)
    report_quarantined(domain, quarantined, say)
    (new, user_ids), known_users, (num_existing, num_new) = find_new_interactions(
        domain, item_ids, (usable.interactions, usable.user_ids), existing
    )
    # Users and items that the corpus has in this domain count as having k interactions already.
    user, item = new["user"].to_numpy(), new["item"].to_numpy()
    user_has_k = user_ids.is_in(known_users.implode()).to_numpy()
    item_has_k = item_ids.is_in(known_items["item_id"].implode()).to_numpy()
    core = new[kcore.k_core_rows(user, item, data.k_core, user_has_k, item_has_k)]
    if core.is_empty() and known_items.is_empty():
        raise empty_core_error(
            domain,
            data.k_core,
            num_new,
            lambda smaller_k: not kcore.k_core_rows(user, item, smaller_k).size,
        )
    core_user, core_user_ids = remove_unused_categories(core["user"], user_ids)
    added_items = titled_items[np.unique(core["item"].to_numpy())]
    say(format_progress(domain, core.height, core_user_ids.len(), added_items.height))
    return LocalDomainDelta(
        (core.with_columns(user=core_user), core_user_ids),
        item_ids,
        to_numbering_order(domain, added_items),
        usable.dropped_and_quarantined
        + items.dropped_and_quarantined
        + Counter(already_in_corpus=num_existing, k_core=num_new - core.height),
        quarantined,
    )

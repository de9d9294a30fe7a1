"""Reads, cleans and numbers all domains of a build, in one process.

The public functions below `prepare_domains` are shared with `corpus.distributed`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from cluster.console import Say
from cluster.errors import DataError
from cluster.progress import track
from corpus.backend import Prepared, UncommittedSamples
from corpus.ingest import cleaning, data_roots, quarantine, raw_data
from corpus.ingest.cleaning import UsableInteractions
from corpus.ingest.kcore import empty_core_error, k_core_rows
from corpus.ingest.quarantine import QuarantinedRows
from corpus.local import negatives, sample_files
from corpus.sampling import samples
from corpus.sampling.encoded_interactions import (
    DomainInteractions,
    EncodedInteractions,
    encode_values,
    remove_unused_categories,
)
from corpus.settings import DataSettings
from corpus.store.catalogue import count_items, group_item_indices
from corpus.store.tables import ITEMS_SCHEMA


@dataclass(frozen=True)
class LocalPrepared(Prepared):
    """The interactions of a build after cleaning and k-core, in the memory of this process.

    Attributes:
        interactions: Interactions of all domains.
    """

    interactions: EncodedInteractions

    def write_sample_files(self, data: DataSettings, seed: int, uri: str) -> UncommittedSamples:
        """Makes all samples of version 0 and writes its files; see `Prepared`."""
        return sample_files.write_sample_files(
            self.interactions, self.item_indices(), data, seed, uri
        )


@dataclass(frozen=True)
class _PreparedDomain:
    """One domain after cleaning and k-core.

    Attributes:
        interactions: Its interactions, with item indices, and the ids of its users.
        items: Its numbered items, a frame of ITEMS_SCHEMA.
        dropped: Rows left out, counted by reason; those in `quarantined` are included.
        quarantined: Rows that cannot be used.
    """

    interactions: DomainInteractions
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]


def prepare_domains(data: DataSettings, say: Say) -> LocalPrepared:
    """Reads and cleans every domain of a build, takes its k-core, and numbers its items.

    Raises:
        DataError: The interactions cannot be used; the message names the domain or the file.
    """
    domains: list[_PreparedDomain] = []
    num_items = 0
    names = list_domains(data)
    with track("reading", say, len(names), "domains") as advance:
        for name in names:
            domains.append(_prepare_domain(data, name, num_items, say))
            num_items += domains[-1].items.height
            advance(1)
    items = pl.concat([empty_items(), *(domain.items for domain in domains)])
    interactions = EncodedInteractions.from_domains(
        [domain.interactions for domain in domains], items
    )
    item_counts = count_items(group_item_indices(items))
    num_negatives = data.num_candidates - 1
    negatives.check_enough_negatives(
        negatives.find_busiest_users(interactions, item_counts, num_negatives),
        item_counts,
        num_negatives,
    )
    return LocalPrepared(
        items,
        sum((domain.dropped for domain in domains), Counter[str]()),
        tuple(rows for domain in domains for rows in domain.quarantined),
        interactions.count_new_by_domain(),
        samples.max_sample_counts(interactions.user_domain_counts, data),
        interactions,
    )


def list_domains(data: DataSettings) -> list[str]:
    """Returns the domains to build, in the order in which their items are numbered.

    Raises:
        DataError: No domain to pre-train on is named.
    """
    if not data.domains:
        raise DataError("data.domains names no domain to pre-train on; name at least one")
    return sorted((*data.domains, *data.held_out))


def empty_items() -> pl.DataFrame:
    """Returns an empty frame of ITEMS_SCHEMA."""
    return pl.DataFrame(ITEMS_SCHEMA.empty_table())


def number_items(domain: str, items: pl.DataFrame, first_index: int) -> tuple[pl.DataFrame, int]:
    """Numbers the items of a domain by item_id, and makes their titles distinct.

    Args:
        domain: Name of the domain.
        items: Its items: item_id, title.
        first_index: Item index of the first one.

    Returns:
        The items, a frame of ITEMS_SCHEMA, and how many titles were changed.
    """
    titled, num_renamed = cleaning.disambiguate_item_titles(items)
    index = pl.int_range(first_index, first_index + titled.height, dtype=pl.Int64)
    return titled.select(
        item_index=index, domain=pl.lit(domain), item_id="item_id", title="title"
    ), num_renamed


def format_progress(domain: str, users: int, items: int, rows: int, k: int) -> str:
    """Returns the progress line of a domain, with the counts of its k-core."""
    return f"{domain}: {users:,} users, {items:,} items, {rows:,} interactions in the {k}-core"


def report_quarantined(domain: str, quarantined: Sequence[QuarantinedRows], say: Say) -> None:
    """Says which rows of a domain cannot be used, in one line for each reason."""
    for line in quarantine.summary_lines(quarantined):
        say(f"{domain}: cannot be used: {line}")


def _prepare_domain(data: DataSettings, domain: str, first_index: int, say: Say) -> _PreparedDomain:
    """Reads and cleans one domain, takes its k-core, and numbers its items from first_index."""
    data = data_roots.at_root(data, domain)
    raw, domain_items = raw_data.read_domain(data, domain, say)
    usable = cleaning.clean_interactions(
        domain,
        raw,
        domain_items.titles["item_id"],
        data,
        domain_items.quarantined,
        domain_items.dropped_ids,
    )
    core = _nonempty_core(domain, usable, data.k_core)
    # Users and items outside the core have lost all their rows: renumber those that remain.
    user, user_ids = remove_unused_categories(core["user"], usable.user_ids)
    item, item_ids = remove_unused_categories(core["item"], usable.item_ids)
    items, num_renamed = number_items(
        domain,
        domain_items.titles.join(pl.DataFrame({"item_id": item_ids}), on="item_id", how="semi"),
        first_index,
    )
    index_by_item = encode_values(item_ids, items["item_id"]) + first_index
    rows = pl.DataFrame(
        {"user": user, "item": index_by_item.gather(item), "timestamp": core["timestamp"]}
    )
    quarantined = (*usable.quarantined, *domain_items.quarantined)
    report_quarantined(domain, quarantined, say)
    say(format_progress(domain, user_ids.len(), items.height, core.height, data.k_core))
    dropped = (
        usable.dropped_and_quarantined
        + domain_items.dropped_and_quarantined
        + Counter(k_core=usable.interactions.height - core.height, title_made_distinct=num_renamed)
    )
    return _PreparedDomain((rows, user_ids), items, dropped, quarantined)


def _nonempty_core(domain: str, usable: UsableInteractions, k: int) -> pl.DataFrame:
    """Returns the interactions of the k-core; raises DataError if there are none."""
    rows = usable.interactions
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    core = rows[k_core_rows(user, item, k)]
    if core.is_empty():
        raise empty_core_error(
            domain, k, rows.height, lambda smaller_k: not k_core_rows(user, item, smaller_k).size
        )
    return core

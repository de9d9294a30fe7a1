"""All domains after cleaning and k-core, ready to be made into samples; here in one process. The same on Ray: `corpus.distributed`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from cluster.console import Say
from cluster.errors import DataError
from corpus.backend import Prepared, UncommittedSamples
from corpus.ingest import cleaning, quarantine, raw_data
from corpus.ingest.cleaning import UsableInteractions
from corpus.ingest.kcore import empty_core_error, k_core_rows
from corpus.ingest.quarantine import QuarantinedRows
from corpus.local import sample_files
from corpus.sampling import samples
from corpus.sampling.encoded_interactions import (
    EncodedInteractions,
    encode_values,
    remove_unused_categories,
)
from corpus.settings import DataSettings
from corpus.store import statistics
from corpus.store.catalogue import count_items, group_item_indices
from corpus.store.tables import ITEMS_SCHEMA


@dataclass(frozen=True)
class LocalPrepared(Prepared):
    """What was gathered, in this process."""

    interactions: EncodedInteractions

    def write_sample_files(self, data: DataSettings, seed: int, uri: str) -> UncommittedSamples:
        """Make and write all samples in this process."""
        return sample_files.write_sample_files(
            self.interactions, self.item_indices(), data, seed, uri
        )


def prepare_domains(data: DataSettings, say: Say) -> LocalPrepared:
    """Read, validate and clean every domain, take its k-core, number its items. Raises DataError naming domain or file."""
    found, items, dropped, quarantined = (
        [],
        [empty_items()],
        Counter[str](),
        list[QuarantinedRows](),
    )
    for domain in list_domains(data):
        rows, users, of_domain, left_out, bad = _prepare_domain(
            data, domain, sum(part.height for part in items), say
        )
        found.append((rows, users))
        items.append(of_domain)
        dropped += left_out
        quarantined += bad
    catalogue = pl.concat(items)
    coded = EncodedInteractions.from_domains(found, catalogue)
    sizes, wanted = count_items(group_item_indices(catalogue)), data.num_candidates - 1
    sample_files.check_enough_negatives(
        sample_files.find_busiest_users(coded, sizes, wanted), sizes, wanted
    )
    return LocalPrepared(
        catalogue,
        dropped,
        tuple(quarantined),
        statistics.count_new_by_domain(coded.user_domain_counts),
        samples.max_sample_counts(coded.user_domain_counts, data),
        coded,
    )


def list_domains(data: DataSettings) -> list[str]:
    """The domains to build, in the order in which their items are numbered. Raises DataError if none is named."""
    if not data.domains:
        raise DataError("data.domains names no domain to pre-train on; name at least one")
    return sorted((*data.domains, *data.held_out))


def empty_items() -> pl.DataFrame:
    """Items of no domain."""
    return pl.DataFrame(ITEMS_SCHEMA.empty_table())


def number_items(domain: str, items: pl.DataFrame, first_index: int) -> tuple[pl.DataFrame, int]:
    """Items (item_id, title) of a domain's core as ITEMS_SCHEMA, numbered from `first` by item_id; and how many titles were made distinct."""
    titled, renamed = cleaning.disambiguate_item_titles(items)
    index = pl.int_range(first_index, first_index + titled.height, dtype=pl.Int64)
    return titled.select(
        item_index=index, domain=pl.lit(domain), item_id="item_id", title="title"
    ), renamed


def format_progress(domain: str, users: int, items: int, rows: int, k: int) -> str:
    """A domain's line of progress."""
    return f"{domain}: {users:,} users, {items:,} items, {rows:,} interactions in the {k}-core"


def report_quarantined(domain: str, quarantined: Sequence[QuarantinedRows], say: Say) -> None:
    """Say what of a domain cannot be used, a line for each reason."""
    for line in quarantine.summary_lines(quarantined):
        say(f"{domain}: cannot be used: {line}")


def _prepare_domain(
    data: DataSettings, domain: str, first_index: int, say: Say
) -> tuple[pl.DataFrame, pl.Series, pl.DataFrame, Counter[str], tuple[QuarantinedRows, ...]]:
    """One domain: interactions (user, item, timestamp) with the names of its users' numbers; items, numbered from `first`; what is left out."""
    there, of_items = raw_data.read_domain(data, domain, say)
    found = cleaning.clean_interactions(domain, there, of_items.titles["item_id"], data)
    core = _nonempty_core(domain, found, data.k_core)
    (user, users), (item, item_ids) = (
        remove_unused_categories(core["user"], found.user_ids),
        remove_unused_categories(core["item"], found.item_ids),
    )
    items, renamed = number_items(
        domain,
        of_items.titles.join(pl.DataFrame({"item_id": item_ids}), on="item_id", how="semi"),
        first_index,
    )
    rows = pl.DataFrame(
        {
            "user": user,
            "item": (encode_values(item_ids, items["item_id"]) + first_index).gather(item),
            "timestamp": core["timestamp"],
        }
    )
    quarantined = (*found.quarantined, *of_items.quarantined)
    report_quarantined(domain, quarantined, say)
    say(format_progress(domain, users.len(), items.height, core.height, data.k_core))
    dropped = (
        found.dropped_and_quarantined
        + of_items.dropped_and_quarantined
        + Counter(k_core=found.interactions.height - core.height, title_made_distinct=renamed)
    )
    return rows, users, items, dropped, quarantined


def _nonempty_core(domain: str, usable: UsableInteractions, k: int) -> pl.DataFrame:
    found = usable.interactions
    user, item = found["user"].to_numpy(), found["item"].to_numpy()
    core = found[k_core_rows(user, item, k)]
    if core.is_empty():
        raise empty_core_error(
            domain, k, found.height, lambda less: not k_core_rows(user, item, less).size
        )
    return core

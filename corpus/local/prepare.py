"""All domains after cleaning and k-core, ready to be made into samples; here in one process. The same on Ray: `corpus.distributed`."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from cluster.errors import DataError
from cluster.say import Say
from corpus.ingest import interactions, quarantine, reading
from corpus.ingest.interactions import Behaviours
from corpus.ingest.kcore import empty, rows_of_core
from corpus.ingest.quarantine import Quarantined
from corpus.local import make_samples
from corpus.local.make_samples import Made
from corpus.sampling import samples
from corpus.sampling.encoded_interactions import Coded, codes, renumbered
from corpus.sampling.sequences import Ints
from corpus.settings import DataSettings
from corpus.store import statistics
from corpus.store.tables import ITEMS_SCHEMA


@dataclass(frozen=True)
class Gathered(ABC):
    """All domains after cleaning and k-core.

    items: ITEMS_SCHEMA, row i is item i; dropped: rows left out, by reason; quarantined: of these, what cannot be used; came: `statistics.came`,
    bounds: `samples.at_most` of all users.
    """

    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]
    came: Mapping[str, tuple[int, int]]
    bounds: Mapping[tuple[str, str], int]

    def indices(self) -> dict[str, Ints]:
        """Item indices of each domain, ascending."""
        return indices(self.items)

    @abstractmethod
    def make(self, data: DataSettings, seed: int, uri: str) -> Made:
        """Make and write all samples."""


@dataclass(frozen=True)
class Held(Gathered):
    """What was gathered, in this process."""

    interactions: Coded

    def make(self, data: DataSettings, seed: int, uri: str) -> Made:
        """Make and write all samples in this process."""
        return make_samples.make(self.interactions, self.indices(), data, seed, uri)


def gather(data: DataSettings, say: Say) -> Held:
    """Read, validate and clean every domain, take its k-core, number its items. Raises DataError naming domain or file."""
    found, items, dropped, quarantined = [], [no_items()], Counter[str](), list[Quarantined]()
    for domain in domains_of(data):
        rows, users, of_domain, left_out, bad = _domain(
            data, domain, sum(part.height for part in items), say
        )
        found.append((rows, users))
        items.append(of_domain)
        dropped += left_out
        quarantined += bad
    catalogue = pl.concat(items)
    coded = Coded.joined(found, catalogue)
    sizes, wanted = sizes_of(indices(catalogue)), data.num_candidates - 1
    make_samples.check_negatives(make_samples.busiest(coded, sizes, wanted), sizes, wanted)
    return Held(
        catalogue,
        dropped,
        tuple(quarantined),
        statistics.came(coded.sizes),
        samples.at_most(coded.sizes, data),
        coded,
    )


def domains_of(data: DataSettings) -> list[str]:
    """The domains to build, in the order in which their items are numbered. Raises DataError if none is named."""
    if not data.domains:
        raise DataError("data.domains names no domain to pre-train on; name at least one")
    return sorted((*data.domains, *data.held_out))


def no_items() -> pl.DataFrame:
    """Items of no domain."""
    return pl.DataFrame(ITEMS_SCHEMA.empty_table())


def indices(items: pl.DataFrame) -> dict[str, Ints]:
    """Item indices of each domain, ascending."""
    return {str(name): rows["item_index"].to_numpy() for (name,), rows in items.group_by("domain")}


def sizes_of(items: Mapping[str, Ints]) -> dict[str, int]:
    """Items of each domain."""
    return {domain: indices.size for domain, indices in items.items()}


def numbered(domain: str, items: pl.DataFrame, first: int) -> tuple[pl.DataFrame, int]:
    """Items (item_id, title) of a domain's core as ITEMS_SCHEMA, numbered from `first` by item_id; and how many titles were made distinct."""
    titled, renamed = interactions.distinct(items)
    index = pl.int_range(first, first + titled.height, dtype=pl.Int64)
    return titled.select(
        item_index=index, domain=pl.lit(domain), item_id="item_id", title="title"
    ), renamed


def told(domain: str, users: int, items: int, rows: int, k: int) -> str:
    """A domain's line of progress."""
    return f"{domain}: {users:,} users, {items:,} items, {rows:,} interactions in the {k}-core"


def tell(domain: str, found: Sequence[Quarantined], say: Say) -> None:
    """Say what of a domain cannot be used, a line for each reason."""
    for line in quarantine.lines(found):
        say(f"{domain}: cannot be used: {line}")


def _domain(
    data: DataSettings, domain: str, first: int, say: Say
) -> tuple[pl.DataFrame, pl.Series, pl.DataFrame, Counter[str], tuple[Quarantined, ...]]:
    """One domain: interactions (user, item, timestamp) with the names of its users' numbers; items, numbered from `first`; what is left out."""
    there, of_items = reading.read(data, domain, say)
    found = interactions.cleaned(domain, there, of_items.titles["item_id"], data)
    core = _core(domain, found, data.k_core)
    (user, users), (item, item_ids) = (
        renumbered(core["user"], found.users),
        renumbered(core["item"], found.item_ids),
    )
    items, renamed = numbered(
        domain,
        of_items.titles.join(pl.DataFrame({"item_id": item_ids}), on="item_id", how="semi"),
        first,
    )
    rows = pl.DataFrame(
        {
            "user": user,
            "item": (codes(item_ids, items["item_id"]) + first).gather(item),
            "timestamp": core["timestamp"],
        }
    )
    quarantined = (*found.quarantined, *of_items.quarantined)
    tell(domain, quarantined, say)
    say(told(domain, users.len(), items.height, core.height, data.k_core))
    dropped = (
        found.left_out
        + of_items.left_out
        + Counter(k_core=found.interactions.height - core.height, title_made_distinct=renamed)
    )
    return rows, users, items, dropped, quarantined


def _core(domain: str, behaviours: Behaviours, k: int) -> pl.DataFrame:
    found = behaviours.interactions
    user, item = found["user"].to_numpy(), found["item"].to_numpy()
    core = found[rows_of_core(user, item, k)]
    if core.is_empty():
        raise empty(domain, k, found.height, lambda less: not rows_of_core(user, item, less).size)
    return core

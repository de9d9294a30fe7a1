"""What of the behaviours that an append was given comes in on a version of a corpus; here in one process. The same on Ray: `corpus.distributed.grow`.

Of each domain: interactions of an item with a title, given with them or known to the corpus, that are not there yet, as far as they are in the core
of what is there and they together (docs/decisions/004-append.md).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from cluster.errors import DataError
from cluster.say import Say
from corpus import catalogue, interactions, kcore, kept, raw, statistics
from corpus.coded import Coded, as_new
from corpus.gather import sizes_of, tell
from corpus.make import Made, busiest, check_negatives, make
from corpus.quarantine import Quarantined
from corpus.raw import Items, Raw
from corpus.sequences import Ints
from corpus.settings import DataSettings
from corpus.statistics import Came
from corpus.table import Corpus


@dataclass(frozen=True)
class Coming(ABC):
    """What comes in on one version of a corpus.

    corpus: that version; data: settings of the whole corpus after it; rows: interactions that come in; items: domain, item_id, title of theirs, in
    the order in which those without a number get one; dropped: interactions left out, by reason; quarantined: of these, what cannot be used.
    """

    corpus: Corpus
    data: DataSettings
    rows: int
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]

    @abstractmethod
    def make(self, numbered: pl.DataFrame, indices: Mapping[str, Ints], seed: int) -> tuple[Made, Came]:
        """Make and write all samples of the next version; and tell `statistics.came`.

        numbered: domain, item_id, item_index of `items`; indices: of each domain in the next version, ascending.
        Raises DataError where a user leaves too few items to draw negatives from.
        """


@dataclass(frozen=True)
class Given(ABC):
    """The behaviours that an append was given. data: names the domains that are appended, and no other."""

    data: DataSettings

    @property
    def domains(self) -> list[str]:
        """The domains, in the order in which their items are numbered."""
        return sorted((*self.data.domains, *self.data.held_out))

    @abstractmethod
    def coming(self, corpus: Corpus, data: DataSettings, say: Say) -> Coming:
        """What of them comes in on a version; writes nothing. data: as in Coming. Raises DataError for behaviours that cannot be used."""


@dataclass(frozen=True)
class Come(Coming):
    """In this process. found: user_id, domain, item_id, timestamp of the interactions; old: what the corpus has of their users, and of others."""

    found: pl.DataFrame
    old: pl.DataFrame

    def make(self, numbered: pl.DataFrame, indices: Mapping[str, Ints], seed: int) -> tuple[Made, Came]:
        """As for Coming."""
        rows = self.found.join(numbered.select("domain", "item_id", "item_index"), on=["domain", "item_id"], how="left")
        new = as_new(rows, self.corpus.version + 1)
        found = Coded.of(pl.concat([new, self.old.join(new.select("user_id").unique(), on="user_id", how="semi").select(new.columns)]))
        sizes, wanted = sizes_of(indices), self.data.num_candidates - 1
        check_negatives(busiest(found, sizes, wanted), sizes, wanted)
        return make(found, indices, self.data, seed, self.corpus.uri), statistics.came(found.sizes)


@dataclass(frozen=True)
class Read(Given):
    """In this process, which reads them once, and the old interactions of each kept file once, however many versions they are compared with."""

    behaviours: dict[str, tuple[Raw, Items]] = field(default_factory=dict)
    old: dict[str, pl.DataFrame] = field(default_factory=dict)

    def coming(self, corpus: Corpus, data: DataSettings, say: Say) -> Come:
        """As for Given."""
        for name in self.domains:
            if name not in self.behaviours:
                self.behaviours[name] = raw.read(self.data, name, say)
        users = pl.concat([of.users for of, _ in self.behaviours.values()]).unique()
        old = kept.of_users(corpus, users, self.old)
        grown = [_grown(corpus, name, *of, old, data, say) for name, of in self.behaviours.items()]
        found, items, dropped, quarantined = zip(*grown, strict=True)
        rows = pl.concat(found)
        return Come(corpus, data, rows.height, pl.concat(items), sum(dropped, Counter[str]()), sum(quarantined, ()), rows, old)


def known(corpus: Corpus, domain: str) -> pl.DataFrame:
    """The items of a domain that a version of a corpus has: item_index, domain, item_id, title."""
    numbers = catalogue.indices_of(corpus.commits[-1].metadata["item_runs"]).get(domain, ())
    there = pl.Series(numbers, dtype=pl.Int64)
    return catalogue.of_domains(corpus.uri, [domain]).filter(pl.col("item_index").is_in(there.implode()))


def with_known(items: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The items of a domain that have a title: item_id, title, by item_id, of those that came with interactions, and of those known that did not."""
    return pl.concat([items, known.select("item_id", "title").join(items, on="item_id", how="anti")]).sort("item_id")


def named(domain: str, items: pl.DataFrame) -> pl.DataFrame:
    """Items of a domain that come in, of item_id and title, as in Coming."""
    return items.sort("item_id").select(pl.lit(domain).alias("domain"), "item_id", "title")


def told(domain: str, rows: int, users: int, items: int) -> str:
    """A domain's line of progress."""
    return f"{domain}: {rows:,} new interactions of {users:,} users and {items:,} items"


def empty(domain: str, k: int, rows: int, is_empty: Callable[[int], bool]) -> DataError:
    """What to tell of a new domain whose core is empty. Arguments: as for `corpus.kcore.empty`."""
    return DataError(f"{kcore.empty(domain, k, rows, is_empty)}, and a corpus keeps the one it was built with")


def _grown(
    corpus: Corpus, domain: str, read: Raw, of_files: Items, old: pl.DataFrame, data: DataSettings, say: Say
) -> tuple[pl.DataFrame, pl.DataFrame, Counter[str], tuple[Quarantined, ...]]:
    """A domain's part of what comes in: `found` of Come, `items`, `dropped` and `quarantined` of Coming."""
    there, of_corpus = old.filter(pl.col("domain") == domain), known(corpus, domain)
    titles = with_known(of_files.titles, of_corpus)
    usable = interactions.usable(domain, read, titles["item_id"], data, interactions.latest(data))
    titled, quarantined = interactions.cleaned(domain, usable, data), (*usable.quarantined, *of_files.quarantined)
    tell(domain, quarantined, say)
    fresh = titled.named().join(there, on=["user_id", "item_id", "timestamp"], how="anti", maintain_order="left")
    core = kcore.k_core(fresh, data.k_core, there["user_id"].unique(), of_corpus["item_id"])
    if core.is_empty() and not fresh.is_empty() and of_corpus.is_empty():
        raise empty(domain, data.k_core, fresh.height, lambda less: kcore.k_core(fresh, less).is_empty())
    items = titles.join(core, on="item_id", how="semi")
    dropped = (
        titled.left_out + of_files.left_out + Counter(already_in_corpus=titled.interactions.height - fresh.height, k_core=fresh.height - core.height)
    )
    say(told(domain, core.height, core["user_id"].n_unique(), items.height))
    return core.select("user_id", pl.lit(domain).alias("domain"), "item_id", "timestamp"), named(domain, items), dropped, quarantined

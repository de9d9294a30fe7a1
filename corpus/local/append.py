"""What of the behaviours that an append was given comes in on a version of a corpus; here in one process. The same on Ray: `corpus.distributed.append`.

Of each domain: interactions of an item with a title, given with them or known to the corpus, that are not there yet, as far as they are in the core
of what is there and they together (docs/decisions/004-append.md).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from cluster.errors import DataError
from cluster.say import Say
from corpus.ingest import interactions, kcore, reading
from corpus.ingest.quarantine import Quarantined
from corpus.ingest.reading import Items, Raw
from corpus.local.make_samples import Made, busiest, check_negatives, make
from corpus.local.prepare import sizes_of, tell
from corpus.sampling.encoded_interactions import Coded, Table, codes, renumbered
from corpus.sampling.sequences import Ints
from corpus.settings import DataSettings
from corpus.store import catalogue, statistics, stored_interactions
from corpus.store.statistics import Came
from corpus.store.tables import Corpus


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
    def make(
        self, numbered: pl.DataFrame, indices: Mapping[str, Ints], seed: int
    ) -> tuple[Made, Came]:
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
    """In this process. tables: of each domain its interactions, and the ids of their items' numbers; old: what the corpus has of their users, and of
    others."""

    tables: Mapping[str, tuple[Table, pl.Series]]
    old: Coded

    def make(
        self, numbered: pl.DataFrame, indices: Mapping[str, Ints], seed: int
    ) -> tuple[Made, Came]:
        """As for Coming."""
        version = self.corpus.version + 1
        new = [
            as_version(version, catalogue_of(domain, ids, numbered), table)
            for domain, (table, ids) in self.tables.items()
        ]
        found, sizes, wanted = (
            together([self.old], new),
            sizes_of(indices),
            self.data.num_candidates - 1,
        )
        check_negatives(busiest(found, sizes, wanted), sizes, wanted)
        return make(found, indices, self.data, seed, self.corpus.uri), statistics.came(found.sizes)


@dataclass(frozen=True)
class Read(Given):
    """In this process, which reads them once, and the old interactions of each kept file once, however many versions they are compared with."""

    behaviours: dict[str, tuple[Raw, Items]] = field(default_factory=dict)
    old: dict[str, Coded] = field(default_factory=dict)

    def coming(self, corpus: Corpus, data: DataSettings, say: Say) -> Come:
        """As for Given."""
        old = stored_interactions.of_users(corpus, self._users(say), self.old)
        grown = [_grown(corpus, name, *of, old, data, say) for name, of in self.behaviours.items()]
        tables, items, dropped, quarantined = zip(*grown, strict=True)
        rows, left_out = sum(table.height for (table, _), _ in tables), sum(dropped, Counter[str]())
        return Come(
            corpus,
            data,
            rows,
            pl.concat(items),
            left_out,
            sum(quarantined, ()),
            dict(zip(self.behaviours, tables, strict=True)),
            old,
        )

    def behind(self, corpus: Corpus, expected: int, say: Say) -> int:
        """Interactions that a corpus has of the users; 0 where all of it, with those expected, would not be too many for this process."""
        there = sum(file.rows for file in stored_interactions.files(corpus))
        return (
            stored_interactions.count_of_users(corpus, self._users(say))
            if there + expected > self.data.distribute_above
            else 0
        )

    def _users(self, say: Say) -> pl.Series:
        for name in self.domains:
            if name not in self.behaviours:
                self.behaviours[name] = reading.read(self.data, name, say)
        return pl.concat([of.users for of, _ in self.behaviours.values()]).unique()


def known(corpus: Corpus, domain: str) -> pl.DataFrame:
    """The items of a domain that a version of a corpus has: item_index, domain, item_id, title."""
    numbers = catalogue.indices_of(corpus.commits[-1].metadata["item_runs"]).get(domain, ())
    there = pl.Series(numbers, dtype=pl.Int64)
    return catalogue.of_domains(corpus.uri, [domain]).filter(
        pl.col("item_index").is_in(there.implode())
    )


def with_known(items: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The items of a domain that have a title: item_id, title, by item_id, of those that came with interactions, and of those known that did not."""
    return pl.concat(
        [items, known.select("item_id", "title").join(items, on="item_id", how="anti")]
    ).sort("item_id")


def in_order(domain: str, items: pl.DataFrame) -> pl.DataFrame:
    """Items of a domain that come in, of item_id and title, as in Coming."""
    return items.sort("item_id").select(pl.lit(domain).alias("domain"), "item_id", "title")


def told(domain: str, rows: int, users: int, items: int) -> str:
    """A domain's line of progress."""
    return f"{domain}: {rows:,} new interactions of {users:,} users and {items:,} items"


def empty(domain: str, k: int, rows: int, is_empty: Callable[[int], bool]) -> DataError:
    """What to tell of a new domain whose core is empty. Arguments: as for `corpus.ingest.kcore.empty`."""
    return DataError(
        f"{kcore.empty(domain, k, rows, is_empty)}{', and a corpus keeps the one it was built with' if rows else ''}"
    )


def compared(
    domain: str, ids: pl.Series, table: Table, old: Coded
) -> tuple[Table, pl.Series, tuple[int, int]]:
    """The interactions of a range that the corpus has not, the users that it has in the domain; and how many it had and had not.

    ids: of the items by number; old: what the corpus has of the range's users in all domains.
    """
    rows, users = table
    item = codes(old.items["item_id"], ids).set(old.items["domain"].cast(pl.String) != domain, None)
    user = codes(old.users["user_id"], users)
    there = old.rows.select(
        "timestamp", user=user.gather(old.rows["user"]), item=item.gather(old.rows["item"])
    ).drop_nulls()
    fresh = rows.join(there, on=["user", "item", "timestamp"], how="anti", maintain_order="left")
    known = users.gather(there["user"].unique())
    left, names = renumbered(fresh["user"], users)
    return (fresh.with_columns(user=left), names), known, (rows.height - fresh.height, fresh.height)


def as_version(version: int, catalogue: pa.Table, table: Table) -> Coded:
    """Interactions of a domain as those of a version. catalogue: domain, item_id and item_index of the items by their numbers."""
    rows, users = table
    used, item = np.unique(rows["item"].to_numpy(), return_inverse=True)
    numbered = rows.select("user", "timestamp", item=pl.Series(item, dtype=pl.UInt32))
    return Coded.joined([(numbered, users)], pl.DataFrame(catalogue.take(used)), version)


def catalogue_of(domain: str, ids: pl.Series, numbered: pl.DataFrame) -> pa.Table:
    """domain, item_id and item_index of a domain's items, by their places among ids; the last is null of items that do not come in."""
    named = pl.DataFrame({"item_id": ids}).with_columns(domain=pl.lit(domain))
    found = named.join(
        numbered.select("domain", "item_id", "item_index"),
        on=["domain", "item_id"],
        how="left",
        maintain_order="left",
    )
    return found.to_arrow()


def together(old: Sequence[Coded], new: Sequence[Coded]) -> Coded:
    """New interactions, and all old ones of their users."""
    users = pl.concat([of.users["user_id"] for of in new]).unique()
    return Coded.merged([*(of.of_users(users) for of in old), *new])


def _grown(
    corpus: Corpus,
    domain: str,
    read: Raw,
    of_files: Items,
    old: Coded,
    data: DataSettings,
    say: Say,
) -> tuple[tuple[Table, pl.Series], pl.DataFrame, Counter[str], tuple[Quarantined, ...]]:
    """A domain's part of what comes in: of `tables` of Come; `items`, `dropped` and `quarantined` of Coming."""
    of_corpus = known(corpus, domain)
    titles = with_known(of_files.titles, of_corpus)
    ids, k = titles["item_id"], data.k_core
    cleaned = interactions.cleaned(domain, read, ids, data)
    quarantined = (*cleaned.quarantined, *of_files.quarantined)
    tell(domain, quarantined, say)
    (fresh, names), known_users, (already, rows) = compared(
        domain, ids, (cleaned.interactions, cleaned.users), old
    )
    user, item = fresh["user"].to_numpy(), fresh["item"].to_numpy()
    has_k = (
        names.is_in(known_users.implode()).to_numpy(),
        ids.is_in(of_corpus["item_id"].implode()).to_numpy(),
    )
    core = fresh[kcore.rows_of_core(user, item, k, *has_k)]
    if core.is_empty() and of_corpus.is_empty():
        raise empty(domain, k, rows, lambda less: not kcore.rows_of_core(user, item, less).size)
    number, users = renumbered(core["user"], names)
    come = titles[np.unique(core["item"].to_numpy())]
    dropped = (
        cleaned.left_out
        + of_files.left_out
        + Counter(already_in_corpus=already, k_core=rows - core.height)
    )
    say(told(domain, core.height, users.len(), come.height))
    return (
        ((core.with_columns(user=number), users), ids),
        in_order(domain, come),
        dropped,
        quarantined,
    )

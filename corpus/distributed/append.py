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

from cluster.say import Say
from corpus.distributed import make_samples, prepare
from corpus.distributed.kcore import core
from corpus.distributed.make_samples import Counted
from corpus.distributed.tasks import Ref, start, told
from corpus.local import append
from corpus.local.append import Coming, Given
from corpus.local.make_samples import Made
from corpus.local.prepare import sizes_of
from corpus.sampling.encoded_interactions import Coded, Table
from corpus.sampling.sequences import Ints
from corpus.settings import DataSettings
from corpus.store import stored_interactions
from corpus.store.statistics import Came
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class Part:
    """What comes in of one domain. ranges: refs of tables; rows: in them; ids: of their items' numbers, ascending; items, dropped: as in Coming."""

    ranges: tuple[Ref, ...]
    rows: int
    ids: pl.Series
    items: pl.DataFrame
    dropped: Counter[str]


@dataclass(frozen=True)
class Ranges(Coming):
    """On Ray. parts: by domain; old: of each range a ref of what its users have in the corpus; behind: how much that is, over all."""

    parts: Mapping[str, Part]
    old: tuple[Ref, ...]
    behind: int

    def make(
        self, numbered: pl.DataFrame, indices: Mapping[str, Ints], seed: int
    ) -> tuple[Made, Came]:
        """As for Coming."""
        found = [
            self.old,
            *(self._numbered(name, part, numbered) for name, part in self.parts.items()),
        ]
        files, count, sizes = (
            stored_interactions.parts(self.rows),
            stored_interactions.parts(self.rows + self.behind),
            sizes_of(indices),
        )
        width = (
            len(self.old) // count
        )  # all are powers of two, and no more rows come in than were read
        of_blocks = [
            [coded for of in found for coded in of[number * width : (number + 1) * width]]
            for number in range(count)
        ]
        made = [
            start(_block, number * files // count, sizes, self.data, width, *of, results=2)
            for number, of in enumerate(of_blocks)
        ]
        blocks = make_samples.counted(made, files, sizes, self.data.num_candidates - 1)
        return blocks.make(indices, self.data, seed, self.corpus.uri), blocks.came

    def _numbered(self, domain: str, part: Part, numbered: pl.DataFrame) -> list[Ref]:
        there = ray.put(append.catalogue_of(domain, part.ids, numbered))
        return [
            start(append.as_version, self.corpus.version + 1, there, table) for table in part.ranges
        ]


@dataclass(frozen=True)
class Unread(Given):
    """On Ray. Which items have a title follows from the version, and rows are judged by it as they are read: so an append that was overtaken does all
    of it again, on the newer version."""

    def coming(self, corpus: Corpus, data: DataSettings, say: Say) -> Ranges:
        """As for Given."""
        known = {name: append.known(corpus, name) for name in self.domains}
        read, ranges = prepare.read(self.data, self.domains, say, known)
        tables, dropped, items, rows = (
            dict[str, list[Ref]](),
            dict[str, Counter[str]](),
            dict[str, pl.DataFrame](),
            0,
        )
        quarantined = tuple(bad for of in read.values() for bad in of.quarantined)
        for name in self.domains:
            of = read.pop(name)  # what lies in the object store lies there as long as its refs live
            tables[name], repeated = prepare.by_range(of, ranges, self.data.max_per_user)
            items[name], dropped[name], rows = of.items, of.dropped + repeated, rows + sum(of.rows)
        there = ray.put(corpus)
        behind = sum(
            told(
                [start(_count, there, *of_range) for of_range in zip(*tables.values(), strict=True)]
            )
        )
        # Ranges with about so many interactions each, what the corpus has of their users among them.
        times = stored_interactions.parts(rows + behind) // ranges
        tables = {name: prepare.finer(of, times) for name, of in tables.items()}
        old = tuple(
            start(_old, there, *of_range) for of_range in zip(*tables.values(), strict=True)
        )
        parts = {
            name: _part(name, tables.pop(name), old, items[name], known[name], data, say)
            for name in self.domains
        }
        left_out = sum(
            (dropped[name] + part.dropped for name, part in parts.items()), Counter[str]()
        )
        come = pl.concat([part.items for part in parts.values()])
        return Ranges(
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


def _part(
    domain: str,
    tables: Sequence[Ref],
    old: Sequence[Ref],
    items: pl.DataFrame,
    known: pl.DataFrame,
    data: DataSettings,
    say: Say,
) -> Part:
    """What comes in of a domain. tables: of each range what could; items: what has a title, by item_id; known: what the corpus has of it."""
    ids, k = items["item_id"], data.k_core
    of_store = ray.put(ids)
    made = [
        start(append.compared, domain, of_store, table, behind, results=3)
        for table, behind in zip(tables, old, strict=True)
    ]
    fresh, users = [of[0] for of in made], [of[1] for of in made]
    already, rows = (sum(counts) for counts in zip(*told([of[2] for of in made]), strict=True))
    left = core(
        fresh, k, ids.len(), users, ray.put(ids.is_in(known["item_id"].implode()).to_numpy())
    )
    if not left.rows and known.is_empty():
        raise append.empty(domain, k, rows, lambda less: not core(fresh, less, ids.len()).rows)
    come = items.filter(ray.get(left.items))
    say(append.told(domain, left.rows, left.users, come.height))
    return Part(
        left.ranges,
        left.rows,
        ids,
        append.in_order(domain, come),
        Counter(already_in_corpus=already, k_core=rows - left.rows),
    )


def _count(corpus: Corpus, *tables: Table) -> int:
    """How many interactions a corpus has of the users of a range."""
    return stored_interactions.count_of_users(
        corpus, pl.concat([users for _, users in tables]).unique()
    )


def _old(corpus: Corpus, *tables: Table) -> Coded:
    """What a corpus has of the users of a range."""
    return stored_interactions.of_users(
        corpus, pl.concat([users for _, users in tables]).unique(), {}
    )


def _block(
    number: int, sizes: Mapping[str, int], data: DataSettings, behind: int, *found: Coded
) -> tuple[pa.Table, Counted]:
    """The new interactions of a range of users and all old ones of theirs, by names; and what is counted of them.

    found: first so many tables of old interactions, of these users and others; then the new ones.
    """
    return make_samples.block(append.together(found[:behind], found[behind:]), number, sizes, data)

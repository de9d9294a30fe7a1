"""Reading, cleaning, k-core and numbering on Ray: pieces of files, then ranges of users, in Ray's object store, which goes to disk where it is full.

1. A piece of a file is read and cleaned by a task, where rows can be judged by themselves.
2. Pieces are spread over ranges of the users' hashes; a range leaves out what comes twice, and what is beyond a user's cap.
3. The k-core of each domain (`corpus.distributed.kcore`).
4. The ranges of all domains together become the blocks that samples are made of.
Items stay in the process that starts the build: they are far fewer than interactions, and their titles have to differ within a domain.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cluster.say import Say
from corpus.distributed import make_samples
from corpus.distributed.kcore import Core, core
from corpus.distributed.make_samples import Blocks, Counted
from corpus.distributed.tasks import Ref, start, stream, told
from corpus.ingest import interactions, quarantine, reading
from corpus.ingest.kcore import empty
from corpus.ingest.quarantine import Quarantined
from corpus.ingest.sources import file_splits, layout
from corpus.ingest.sources.file_splits import Piece
from corpus.local import append
from corpus.local import prepare as here
from corpus.local.make_samples import Made
from corpus.local.prepare import Gathered, indices, sizes_of
from corpus.sampling import hashing
from corpus.sampling.encoded_interactions import Coded, Table, codes, renumbered
from corpus.settings import DataSettings
from corpus.store import stored_interactions

SPREAD = 1 << 13
"""Interactions of a range in what one task spreads, on average: much smaller results would be kept by the process that asks for them."""


@dataclass(frozen=True)
class Spread(Gathered):
    """What was gathered, on Ray."""

    blocks: Blocks

    def make(self, data: DataSettings, seed: int, uri: str) -> Made:
        """Make and write all samples on Ray."""
        return self.blocks.make(self.indices(), data, seed, uri)


@dataclass(frozen=True)
class _Domain:
    """A domain that is being read. pieces: refs of tables; rows: of each; items: item_id, title; dropped: by reason; quarantined: of that, what
    cannot be used."""

    pieces: tuple[Ref, ...]
    rows: tuple[int, ...]
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]


def gather(data: DataSettings, say: Say) -> Spread:
    """As `corpus.local.prepare.gather`. Raises DataError naming domain or file."""
    domains, ranges = read(data, here.domains_of(data), say)
    items, dropped, found, total = [here.no_items()], Counter[str](), list[list[Ref]](), 0
    quarantined: list[Quarantined] = []
    for name in list(domains):
        of = domains.pop(name)  # what lies in the object store lies there as long as its refs live
        repeating, repeated = by_range(of, ranges, data.max_per_user)
        rows, first = sum(of.rows) - repeated.total(), sum(part.height for part in items)
        left = _core(name, repeating, rows, data.k_core, of.items.height)
        numbered, renamed = here.numbered(name, of.items.filter(ray.get(left.items)), first)
        items.append(numbered)
        total += left.rows
        found.append([start(_indexed, table, left.items, first) for table in left.ranges])
        dropped += (
            of.dropped + repeated + Counter(k_core=rows - left.rows, title_made_distinct=renamed)
        )
        quarantined += of.quarantined
        say(here.told(name, left.users, numbered.height, left.rows, data.k_core))
    return _blocks(
        found, stored_interactions.parts(total), pl.concat(items), dropped, tuple(quarantined), data
    )


def read(
    data: DataSettings,
    domains: Sequence[str],
    say: Say,
    known: Mapping[str, pl.DataFrame] | None = None,
) -> tuple[dict[str, _Domain], int]:
    """Domains that are being read, and how many ranges of users their interactions are to be spread over.

    known: of some domains item_id, title of items that have a title without being read.
    """
    found = {name: _read(data, name, say, known=(known or {}).get(name)) for name in domains}
    return found, stored_interactions.parts(sum(sum(of.rows) for of in found.values()))


def _read(
    data: DataSettings, domain: str, say: Say, *, known: pl.DataFrame | None = None
) -> _Domain:
    """Read all pieces of a domain, block by block, and leave out what cannot be used. known: as for `read`."""
    of_interactions, of_items = layout.files(data, domain)
    items = reading.read_items(data, domain, of_items, say)
    titles = items.titles if known is None else append.with_known(items.titles, known)
    titled, latest = ray.put(titles["item_id"]), interactions.latest(data)
    cut = [piece for file in of_interactions for piece in file_splits.cut(file)]
    seen, tables = list[_Seen](), list[Ref]()
    for of_piece in [stream(_piece, domain, piece, titled, data, latest) for piece in cut]:
        refs = list(of_piece)
        seen += told(refs[::2])
        tables += refs[1::2]
    reading.agree([of.block for of in seen], reading.columns_of(data), data, say)
    bad = quarantine.joined((of.quarantined, of.block.file, of.block.rows) for of in seen)
    rows, dropped = tuple(of.rows for of in seen), sum((of.dropped for of in seen), Counter[str]())
    interactions.check_share(domain, bad, sum(rows) + dropped.total(), data)
    every = (*bad, *items.quarantined)
    here.tell(domain, every, say)
    return _Domain(
        tuple(tables), rows, titles, dropped + items.dropped + quarantine.counts(every), every
    )


@dataclass(frozen=True)
class _Seen:
    """What is told of a block. block: by which its file is judged; rows: that can be used; dropped, quarantined: what cannot."""

    block: reading.Told
    rows: int
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]


def _piece(
    domain: str, piece: Piece, titled: pl.Series, data: DataSettings, latest: int
) -> Iterator[_Seen | Table]:
    """Of every block of a piece: what is told of it, then the interactions that can be used."""
    for block in reading.blocks(piece, reading.columns_of(data), data):
        found = interactions.usable(
            domain, reading.coded([(piece.file, block)]), titled, data, latest
        )
        user, users = renumbered(found.interactions["user"], found.users)
        rows = found.interactions.select("item", "timestamp", user=user)
        yield _Seen(reading.told(piece.file, block), rows.height, found.dropped, found.quarantined)
        yield rows, users


def by_range(of: _Domain, ranges: int, max_per_user: int) -> tuple[list[Ref], Counter[str]]:
    """The interactions of a domain by ranges of users, each once and no user with more than so many; and what is left out."""
    together, rows = [list[Ref]()], 0
    for piece, height in zip(of.pieces, of.rows, strict=True):
        if rows >= SPREAD * ranges:
            together.append([])
            rows = 0
        together[-1].append(piece)
        rows += height
    spread = [start(_cut, ranges, 0, ranges, *tables, results=ranges) for tables in together]
    # A task with one result gives a ref, not a list of them.
    by_range = [spread] if ranges == 1 else zip(*spread, strict=True)
    cleaned = [start(_once, max_per_user, *tables, results=2) for tables in by_range]
    return [table for table, _ in cleaned], sum(
        told([repeated for _, repeated in cleaned]), Counter[str]()
    )


def finer(tables: Sequence[Ref], times: int) -> list[Ref]:
    """Tables of so many times as many ranges of users, from those of all ranges."""
    if times == 1:
        return list(tables)
    of = len(tables) * times
    return [
        part
        for i, table in enumerate(tables)
        for part in start(_cut, of, i * times, (i + 1) * times, table, results=times)
    ]


def _cut(ranges: int, low: int, high: int, *tables: Table) -> Table | list[Table]:
    """Interactions by ranges of their users, which all lie in the ranges low .. high - 1 of so many."""
    rows, users = _joined(tables)
    of_user = hashing.ranges(hashing.of_strings(users), ranges)
    place = of_user[rows["user"].to_numpy()]
    order = np.argsort(place, kind="stable")
    ends = np.searchsorted(place[order], np.arange(low, high + 1))
    found = []
    for first, stop in pairwise(ends):
        part = rows[order[first:stop]]
        user, names = renumbered(part["user"], users)
        found.append((part.with_columns(user=user), names))
    return found if len(found) > 1 else found[0]


def _once(max_per_user: int, *tables: Table) -> tuple[Table, Counter[str]]:
    rows, users = _joined(tables)
    found, repeated = interactions.once(rows, max_per_user)
    return (found, users), repeated


def _joined(tables: Sequence[Table]) -> Table:
    """Interactions of several tables, with one set of users' numbers."""
    users = pl.concat([users for _, users in tables]).unique()
    return pl.concat(
        [rows.with_columns(user=codes(names, users).gather(rows["user"])) for rows, names in tables]
    ), users


def _core(domain: str, ranges: Sequence[Ref], rows: int, k: int, items: int) -> Core:
    found = core(ranges, k, items)
    if not found.rows:
        raise empty(domain, k, rows, lambda less: not core(ranges, less, items).rows)
    return found


def _indexed(table: Table, left: NDArray[np.bool_], first: int) -> Table:
    """Interactions whose items are numbered as those of all domains are: the items that are left, by their order, from the domain's first on."""
    rows, users = table
    index = np.cumsum(left) - 1 + first
    return rows.with_columns(item=pl.Series(index[rows["item"].to_numpy()])), users


def _blocks(
    found: Sequence[Sequence[Ref]],
    parts: int,
    items: pl.DataFrame,
    dropped: Counter[str],
    quarantined: tuple[Quarantined, ...],
    data: DataSettings,
) -> Spread:
    """The blocks that samples are made of, and what is counted over them. found: of each domain the tables of all ranges; parts: blocks."""
    catalogue, sizes, wanted = (
        ray.put(items.drop("title").to_arrow()),
        sizes_of(indices(items)),
        data.num_candidates - 1,
    )
    width = (
        len(found[0]) // parts
    )  # both are powers of two, and a core has no more rows than it was made of
    tables = [
        [table for of in found for table in of[number * width : (number + 1) * width]]
        for number in range(parts)
    ]
    made = [
        start(_block, number, sizes, catalogue, data, *of, results=2)
        for number, of in enumerate(tables)
    ]
    blocks = make_samples.counted(made, parts, sizes, wanted)
    return Spread(items, dropped, quarantined, blocks.came, blocks.bounds, blocks)


def _block(
    number: int, sizes: Mapping[str, int], catalogue: pa.Table, data: DataSettings, *tables: Table
) -> tuple[pa.Table, Counted]:
    """The interactions of a range of users in all domains, by names; and what is counted of them."""
    used = np.unique(np.concatenate([rows["item"].to_numpy() for rows, _ in tables]))
    of_used = [
        pl.Series(np.searchsorted(used, rows["item"].to_numpy()), dtype=pl.UInt32)
        for rows, _ in tables
    ]
    numbered = [
        (rows.select("user", "timestamp", item=item), users)
        for (rows, users), item in zip(tables, of_used, strict=True)
    ]
    found = Coded.joined(numbered, pl.DataFrame(catalogue.take(used)))
    return make_samples.block(found, number, sizes, data)

"""From users' interactions to samples, one partition of users at a time. Pure: the same users give the same samples in any partition."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from corpus import candidates, hashing, sequences
from corpus.sequences import SPLITS, TEST, TRAIN, VALIDATION, Ints, Windows
from corpus.settings import DataSettings

MIXED = "mixed"

SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),  # the bits of a uint64: Delta has no unsigned integers
        ("domain", pa.string()),
        ("user_id", pa.string()),
        ("history", pa.list_(pa.int64())),
        ("candidates", pa.list_(pa.int64())),
        ("target", pa.int8()),
        ("timestamp", pa.int64()),
    ]
)
"""Columns of a sample; its source and split are those of the file that it is in (`corpus.table`)."""


def source_of(domain: str, data: DataSettings) -> str:
    """The source of a domain's own samples: `domain/<name>`, or `downstream/<name>` for one that is held out of pre-training."""
    return f"{'downstream' if domain in data.held_out else 'domain'}/{domain}"


@dataclass(frozen=True)
class Samples:
    """Samples by (source, split), each a table of SCHEMA in no particular order; users with mixed samples; targets that made no sample, by reason."""

    tables: Mapping[tuple[str, str], pa.Table]
    mixed_users: int
    dropped: Counter[str]


@dataclass(frozen=True)
class _Flat:
    """A frame of sequences as parallel arrays [n]: what windows point into."""

    frame: pl.DataFrame
    user: Ints
    item: Ints
    place: Ints
    size: Ints

    @classmethod
    def of(cls, frame: pl.DataFrame) -> "_Flat":
        return cls(frame, *(frame[name].to_numpy() for name in ("user", "item_index", "place", "size")))


class _Partition:
    """What the samples of one partition of users share."""

    def __init__(self, interactions: pl.DataFrame, items: Mapping[str, Ints], data: DataSettings, seed: int) -> None:
        self.items, self.data, self.seed = items, data, seed
        names = interactions["user_id"].unique().sort()
        users = pl.DataFrame({"user_id": names, "user": np.arange(names.len())})
        self.user_hash = hashing.of_strings(names)
        self.ordered = sequences.domain_sequences(interactions.join(users, on="user_id", how="left"))
        self.domains = {str(name): _Flat.of(rows) for (name,), rows in self.ordered.group_by("domain", maintain_order=True)}
        self.interacted = {
            name: candidates.Interacted.of(flat.user, self.number(name, flat.item), items[name].size) for name, flat in self.domains.items()
        }

    def number(self, domain: str, item_index: Ints) -> Ints:
        """Items of a domain numbered 0 .. n - 1 in the order of their index."""
        return np.searchsorted(self.items[domain], item_index)

    def draw(self, domain: str, user: Ints, item_index: Ints) -> tuple[Ints, NDArray[np.int8]]:
        """Candidates (item indices) and the target's place for targets of one domain."""
        key = hashing.combine(self.seed, self.user_hash[user], item_index)
        numbers, place = candidates.draw(key, user, self.number(domain, item_index), self.interacted[domain], self.data.num_candidates)
        return self.items[domain][numbers], place

    def table(self, source: str, flat: _Flat, found: Windows) -> pa.Table:
        """The samples of some windows of one flat frame."""
        row, count = found.target, self.data.num_candidates
        user, item = flat.user[row], flat.item[row]
        domain = flat.frame["domain"].gather(row)
        drawn, place = np.empty((row.size, count), np.int64), np.empty(row.size, np.int8)
        for name in domain.unique():
            of_domain = np.flatnonzero((domain == name).to_numpy())
            drawn[of_domain], place[of_domain] = self.draw(name, user[of_domain], item[of_domain])
        identity = hashing.combine(hashing.of_strings([source]), self.user_hash[user], flat.place[row])
        offsets = np.arange(0, (row.size + 1) * count, count, dtype=np.int32)
        columns = [
            pa.array(identity.view(np.int64)),
            domain.to_arrow().cast(pa.string()),
            flat.frame["user_id"].gather(row).to_arrow().cast(pa.string()),
            found.histories(flat.item),
            pa.ListArray.from_arrays(offsets, pa.array(drawn.reshape(-1))),
            pa.array(place),
            flat.frame["timestamp"].gather(row).to_arrow(),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


def samples_of(interactions: pl.DataFrame, items: Mapping[str, Ints], data: DataSettings, seed: int) -> Samples:
    """All samples of some users.

    interactions: *all* interactions of these users, in any order: user_id, domain, item_id, item_index, timestamp, no row twice.
    items: the item indices of each domain, ascending. Every user must leave data.num_candidates - 1 items of each domain (`corpus.build` checks it).
    """
    partition = _Partition(interactions, items, data, seed)
    tables: dict[tuple[str, str], pa.Table] = {}
    dropped: Counter[str] = Counter()
    for domain, flat in partition.domains.items():
        found = sequences.windows(flat.place, data.min_history, data.max_history)
        dropped["short_history"] += flat.place.size - found.target.size
        split = sequences.leave_one_out(flat.place, flat.size)[found.target]
        for code, name in enumerate(SPLITS):
            tables[source_of(domain, data), name] = partition.table(source_of(domain, data), flat, found.where(split == code))
    mixed, of_mixed = _mixed(partition)
    tables[MIXED, TRAIN] = mixed
    return Samples(tables, pc.count_distinct(mixed["user_id"]).as_py(), dropped + of_mixed)


def _mixed(partition: _Partition) -> tuple[pa.Table, Counter[str]]:
    data = partition.data
    flat = _Flat.of(sequences.mixed_sequences(partition.ordered, data.domains))
    found = sequences.windows(flat.place, data.min_history, data.max_history)
    short = Counter(mixed_short_history=flat.place.size - found.target.size)
    domain = flat.frame["domain"].rank("dense").cast(pl.Int64).to_numpy()
    kept, dropped = sequences.strongly_relevant(found, flat.user, domain, data.mixed_min_domains, data.mixed_min_target_domain)
    return partition.table(MIXED, flat, kept), short + dropped


def at_most(interactions: pl.DataFrame, data: DataSettings) -> dict[tuple[str, str], int]:
    """How many samples each (source, split) can have: exact but for `mixed`, whose rules only take away. Sets the number of files."""
    sizes = interactions.group_by("user_id", "domain").len("size").with_columns(pl.col("size").cast(pl.Int64))
    enough = pl.lit(data.min_history)
    by_domain = sizes.group_by("domain").agg(
        (pl.col("size") - 2 - enough).clip(0).sum().alias(TRAIN),
        (pl.col("size") - 2 >= enough).sum().alias(VALIDATION),
        (pl.col("size") - 1 >= enough).sum().alias(TEST),
    )
    bounds = {(source_of(row["domain"], data), split): int(row[split]) for row in by_domain.iter_rows(named=True) for split in SPLITS}
    training = sizes.filter(pl.col("domain").is_in(list(data.domains))).group_by("user_id").agg((pl.col("size") - 2).clip(0).sum())
    bounds[MIXED, TRAIN] = int(training.select((pl.col("size") - enough).clip(0).sum()).item() or 0)
    return bounds


def partitioned(interactions: pl.DataFrame, count: int) -> pl.DataFrame:
    """Add `partition`, 0 .. count - 1, such that all interactions of a user are in one."""
    users = interactions["user_id"].unique()
    numbers = pl.DataFrame({"user_id": users, "partition": (hashing.of_strings(users) % np.uint64(count)).astype(np.int64)})
    return interactions.join(numbers, on="user_id", how="left")

"""From users' interactions to samples, one partition of users at a time. Pure: the same users give the same samples in any partition."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from corpus.sampling import candidates, hashing, sequences
from corpus.sampling.encoded_interactions import Coded
from corpus.sampling.sequences import SPLITS, TEST, TRAIN, VALIDATION, Ints, Windows
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
"""Columns of a sample; its source and split are those of the file that it is in (`corpus.store.tables`)."""


def source_of(domain: str, data: DataSettings) -> str:
    """The source of a domain's own samples: `domain/<name>`, or `downstream/<name>` for one that is held out of pre-training."""
    return f"{'downstream' if domain in data.held_out else 'domain'}/{domain}"


KEPT = pa.schema(
    [
        (
            "user_hash",
            pa.int64(),
        ),  # the bits of the hash of user_id: what files and row groups are found by
        ("user_id", pa.string()),
        ("domain", pa.string()),
        ("item_id", pa.string()),
        ("item_index", pa.int64()),
        ("timestamp", pa.int64()),
        ("split", pa.int8()),
    ]
)
"""Columns of a kept interaction; split: index into SPLITS, for ever."""


@dataclass(frozen=True)
class Samples:
    """What some users' new interactions make.

    tables: samples by (source, split), each a table of SCHEMA in the order of their unsigned ids; kept: the new interactions with their splits, a
    table of KEPT in its order; mixed_users: users with their first mixed samples; dropped: new interactions that are no target, by reason.
    """

    tables: Mapping[tuple[str, str], pa.Table]
    kept: pa.Table
    mixed_users: int
    dropped: Counter[str]


@dataclass(frozen=True)
class _Flat:
    """A frame of sequences as parallel arrays [n]: what windows point into. number: what a sample is known by, within user and source."""

    frame: pl.DataFrame
    user: Ints
    item: Ints
    place: Ints
    number: Ints

    @classmethod
    def of(cls, frame: pl.DataFrame) -> "_Flat":
        return cls(
            frame,
            *(
                frame[name].cast(pl.Int64).to_numpy()
                for name in ("user", "item_index", "place", "number")
            ),
        )

    def having(self, condition: pl.Expr) -> NDArray[np.bool_]:
        """Which rows fulfil a condition [n]."""
        return self.frame.select(condition).to_series().to_numpy()


class _Partition:
    """What the samples of one partition of users share."""

    def __init__(
        self, found: Coded, items: Mapping[str, Ints], data: DataSettings, seed: int
    ) -> None:
        self.items, self.data, self.seed = items, data, seed
        self.user_id, self.user_hash = (
            found.users["user_id"],
            found.users["user_hash"].to_numpy().view(np.uint64),
        )
        self.item_id = found.items["item_id"]
        of_item = found.items.select(pl.col("domain", "item_index").gather(found.rows["item"]))
        self.ordered = sequences.domain_sequences(found.rows.hstack(of_item))
        self.domains = {
            str(name): rows
            for (name,), rows in self.ordered.group_by("domain", maintain_order=True)
        }
        self.interacted = {
            name: candidates.Interacted.of(
                rows["user"].cast(pl.Int64).to_numpy(),
                self.number(name, rows["item_index"].to_numpy()),
                items[name].size,
            )
            for name, rows in self.domains.items()
        }

    def number(self, domain: str, item_index: Ints) -> Ints:
        """Items of a domain numbered 0 .. n - 1 in the order of their index."""
        return np.searchsorted(self.items[domain], item_index)

    def draw(self, domain: str, user: Ints, item_index: Ints) -> tuple[Ints, NDArray[np.int8]]:
        """Candidates (item indices) and the target's place for targets of one domain."""
        key = hashing.combine(self.seed, self.user_hash[user], item_index)
        numbers, place = candidates.draw(
            key,
            user,
            self.number(domain, item_index),
            self.interacted[domain],
            self.data.num_candidates,
        )
        return self.items[domain][numbers], place

    def kept(self) -> pa.Table:
        """The new interactions, as they are kept: in the order of users' hashes, each user's in the order of domain, time and item."""
        new = self.ordered.filter("new")
        of_user = [
            self.user_id.gather(new["user"]),
            pl.Series("user_hash", self.user_hash[new["user"]].view(np.int64)),
        ]
        named = new.with_columns(
            *of_user, self.item_id.gather(new["item"]), pl.col("domain").cast(pl.String)
        )
        return named.select(KEPT.names).to_arrow().cast(KEPT)

    def _identity(self, source: str, user_hash: hashing.Hash, number: Ints) -> hashing.Hash:
        """What samples are known by, and ordered by: a hash, or a hash of the user with the number behind it."""
        of_source = hashing.of_strings([source])
        if self.data.users_together:
            return hashing.members(hashing.combine(of_source, user_hash), number)
        return hashing.combine(of_source, user_hash, number)

    def table(self, source: str, flat: _Flat, found: Windows) -> pa.Table:
        """The samples of some windows of one flat frame, in the order of their unsigned ids."""
        identity = self._identity(
            source, self.user_hash[flat.user[found.target]], flat.number[found.target]
        )
        order = np.argsort(identity)
        found, row, count = (
            Windows(found.target[order], found.length[order]),
            found.target[order],
            self.data.num_candidates,
        )
        user, item = flat.user[row], flat.item[row]
        domain = flat.frame["domain"].gather(row)
        drawn, place = np.empty((row.size, count), np.int64), np.empty(row.size, np.int8)
        for name in domain.unique():
            of_domain = np.flatnonzero((domain == name).to_numpy())
            drawn[of_domain], place[of_domain] = self.draw(name, user[of_domain], item[of_domain])
        offsets = np.arange(0, (row.size + 1) * count, count, dtype=np.int32)
        columns = [
            pa.array(identity[order].view(np.int64)),
            domain.cast(pl.String).to_arrow().cast(pa.string()),
            self.user_id.gather(user).to_arrow().cast(pa.string()),
            found.histories(flat.item),
            pa.ListArray.from_arrays(offsets, pa.array(drawn.reshape(-1))),
            pa.array(place),
            flat.frame["timestamp"].gather(row).to_arrow(),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


def samples_of(found: Coded, items: Mapping[str, Ints], data: DataSettings, seed: int) -> Samples:
    """All samples that the new interactions of some users make possible; those of a first version are all new.

    found: *all* interactions of these users.
    items: the item indices of each domain, ascending. Every user must leave data.num_candidates - 1 items of each domain (`corpus.local.make_samples` checks it).
    """
    partition = _Partition(found, items, data, seed)
    tables: dict[tuple[str, str], pa.Table] = {}
    dropped: Counter[str] = Counter()
    for domain, rows in partition.domains.items():
        source, new = source_of(domain, data), int(rows["new"].sum())
        training, whole = _Flat.of(sequences.training_sequences(rows)), _Flat.of(rows)
        for code, split in enumerate(SPLITS):
            # A training history holds nothing that was ever held out; that of a validation or test target is all that came before it.
            flat = training if split == TRAIN else whole
            targets = _targets(flat, data).where_row(
                flat.having(pl.col("new") & (pl.col("split") == code))
            )
            tables[source, split] = partition.table(source, flat, targets)
            new -= targets.target.size
        dropped["short_history"] += new
    mixed, first, of_mixed = _mixed(partition)
    tables[MIXED, TRAIN] = mixed
    return Samples(tables, partition.kept(), first, dropped + of_mixed)


def _targets(flat: _Flat, data: DataSettings) -> Windows:
    return sequences.windows(flat.place, data.min_history, data.max_history)


def _mixed(partition: _Partition) -> tuple[pa.Table, int, Counter[str]]:
    """Mixed samples of the targets that are possible now and were not in any earlier version; users who had none before; what is dropped."""
    data = partition.data
    flat = _Flat.of(sequences.mixed_sequences(partition.ordered, data.domains))
    found, new = _targets(flat, data), flat.having(pl.col("new"))
    of_new = found.where_row(new)
    fits, dropped = _related(flat, of_new, data)
    dropped["mixed_short_history"] = int(new.sum()) - of_new.target.size
    if new.all():
        return partition.table(MIXED, flat, fits), np.unique(flat.user[fits.target]).size, dropped
    before = _possible_before(flat, data)
    fits, _ = _related(flat, found.where_row(~before), data)
    return (
        partition.table(MIXED, flat, fits),
        np.setdiff1d(flat.user[fits.target], flat.user[before]).size,
        dropped,
    )


def _related(flat: _Flat, found: Windows, data: DataSettings) -> tuple[Windows, Counter[str]]:
    domain = flat.frame["domain"].to_physical().cast(pl.Int64).to_numpy()
    return sequences.strongly_relevant(
        found, flat.user, domain, data.mixed_min_domains, data.mixed_min_target_domain
    )


def _possible_before(flat: _Flat, data: DataSettings) -> NDArray[np.bool_]:
    """Which rows of the mixed frame were targets of mixed samples in earlier versions [n]: found again as each of these versions found them."""
    before = np.zeros(flat.user.size, bool)
    numbered = flat.frame.with_row_index("row")
    old = numbered.filter(~pl.col("new"))
    for version in old["version"].unique().sort():
        users = old.filter(pl.col("version") == version).select("user").unique()
        then = sequences.placed_in(
            old.filter(pl.col("version") <= version).join(
                users, on="user", how="semi", maintain_order="left"
            ),
            "user",
        )
        as_it_was = _Flat.of(then)
        fits, _ = _related(as_it_was, _targets(as_it_was, data), data)
        before[then["row"].to_numpy()[fits.target]] = True
    return before


def at_most(sizes: pl.DataFrame, data: DataSettings) -> dict[tuple[str, str], int]:
    """How many samples each (source, split) can have: exact but for `mixed`, whose rules only take away, where all interactions are new.

    sizes: `Coded.sizes`; bounds of some users and of others add up. Sets the number of files.
    """
    grown = pl.col("new") < pl.col("size")
    enough = pl.lit(data.min_history)
    by_domain = sizes.group_by("domain").agg(
        pl.when(grown)
        .then("new")
        .otherwise((pl.col("size") - 2 - enough).clip(0))
        .sum()
        .alias(TRAIN),
        (pl.when(grown).then(True).otherwise(pl.col("size") - 2 >= enough) & (pl.col("new") > 0))
        .sum()
        .alias(VALIDATION),
        (pl.when(grown).then(True).otherwise(pl.col("size") - 1 >= enough) & (pl.col("new") > 0))
        .sum()
        .alias(TEST),
    )
    bounds = {
        (source_of(row["domain"], data), split): int(row[split])
        for row in by_domain.iter_rows(named=True)
        for split in SPLITS
    }
    of_domain = pl.when(grown).then("size").otherwise((pl.col("size") - 2).clip(0))
    training = (
        sizes.filter(pl.col("domain").is_in(list(data.domains)))
        .group_by("user")
        .agg(of_domain.sum().alias("size"))
    )
    bounds[MIXED, TRAIN] = int(training.select((pl.col("size") - enough).clip(0).sum()).item() or 0)
    return bounds

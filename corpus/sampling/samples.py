"""From users' interactions to samples, one partition of users at a time. Pure: the same users give the same samples in any partition."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from corpus.sampling import candidates, hashing, sequences
from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.sequences import SPLITS, TEST, TRAIN, VALIDATION, HistoryWindows, IntArray
from corpus.sampling.source import MIXED, Source, SourceKind
from corpus.settings import DataSettings

SAMPLE_SCHEMA = pa.schema(
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


def domain_source(domain: str, data: DataSettings) -> Source:
    """Returns the source of a domain's own samples, by whether it is held out of pre-training."""
    held_out = domain in data.held_out
    return Source(SourceKind.DOWNSTREAM if held_out else SourceKind.DOMAIN, domain)


STORED_INTERACTION_SCHEMA = pa.schema(
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
    new_interactions: pa.Table
    mixed_users: int
    dropped: Counter[str]


@dataclass(frozen=True)
class _FlatSequences:
    """A frame of sequences as parallel arrays [n]: what windows point into. number: what a sample is known by, within user and source."""

    frame: pl.DataFrame
    user: IntArray
    item: IntArray
    position: IntArray
    arrival_rank: IntArray

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> "_FlatSequences":
        return cls(
            frame,
            *(
                frame[name].cast(pl.Int64).to_numpy()
                for name in ("user", "item_index", "place", "number")
            ),
        )

    def mask(self, condition: pl.Expr) -> NDArray[np.bool_]:
        """Which rows fulfil a condition [n]."""
        return self.frame.select(condition).to_series().to_numpy()


class _SampleBuilder:
    """What the samples of one partition of users share."""

    def __init__(
        self,
        interactions: EncodedInteractions,
        item_indices: Mapping[str, IntArray],
        data: DataSettings,
        seed: int,
    ) -> None:
        self.item_indices, self.data, self.seed = item_indices, data, seed
        self.user_id, self.user_hash = (
            interactions.users["user_id"],
            interactions.users["user_hash"].to_numpy().view(np.uint64),
        )
        self.item_id = interactions.items["item_id"]
        of_item = interactions.items.select(
            pl.col("domain", "item_index").gather(interactions.rows["item"])
        )
        self.ordered_rows = sequences.domain_sequences(interactions.rows.hstack(of_item))
        self.rows_by_domain = {
            str(name): rows
            for (name,), rows in self.ordered_rows.group_by("domain", maintain_order=True)
        }
        self.interacted = {
            name: candidates.InteractedItems.from_interactions(
                rows["user"].cast(pl.Int64).to_numpy(),
                self.positions_in_domain(name, rows["item_index"].to_numpy()),
                item_indices[name].size,
            )
            for name, rows in self.rows_by_domain.items()
        }

    def positions_in_domain(self, domain: str, item_index: IntArray) -> IntArray:
        """Items of a domain numbered 0 .. n - 1 in the order of their index."""
        return np.searchsorted(self.item_indices[domain], item_index)

    def draw_candidates(
        self, domain: str, user: IntArray, item_index: IntArray
    ) -> tuple[IntArray, NDArray[np.int8]]:
        """Candidates (item indices) and the target's place for targets of one domain."""
        key = hashing.hash_integers(self.seed, self.user_hash[user], item_index)
        numbers, place = candidates.draw_candidates(
            key,
            user,
            self.positions_in_domain(domain, item_index),
            self.interacted[domain],
            self.data.num_candidates,
        )
        return self.item_indices[domain][numbers], place

    def new_interactions(self) -> pa.Table:
        """The new interactions, as they are kept: in the order of users' hashes, each user's in the order of domain, time and item."""
        new = self.ordered_rows.filter("new")
        of_user = [
            self.user_id.gather(new["user"]),
            pl.Series("user_hash", self.user_hash[new["user"]].view(np.int64)),
        ]
        named = new.with_columns(
            *of_user, self.item_id.gather(new["item"]), pl.col("domain").cast(pl.String)
        )
        return (
            named.select(STORED_INTERACTION_SCHEMA.names).to_arrow().cast(STORED_INTERACTION_SCHEMA)
        )

    def _sample_ids(
        self, source: str, user_hash: hashing.Hashes, number: IntArray
    ) -> hashing.Hashes:
        """What samples are known by, and ordered by: a hash, or a hash of the user with the number behind it."""
        of_source = hashing.hash_strings([source])
        if self.data.users_together:
            return hashing.member_ids(hashing.hash_integers(of_source, user_hash), number)
        return hashing.hash_integers(of_source, user_hash, number)

    def build_table(self, source: str, flat: _FlatSequences, windows: HistoryWindows) -> pa.Table:
        """The samples of some windows of one flat frame, in the order of their unsigned ids."""
        identity = self._sample_ids(
            source, self.user_hash[flat.user[windows.target]], flat.arrival_rank[windows.target]
        )
        order = np.argsort(identity)
        windows, row, count = (
            HistoryWindows(windows.target[order], windows.length[order]),
            windows.target[order],
            self.data.num_candidates,
        )
        user, item = flat.user[row], flat.item[row]
        domain = flat.frame["domain"].gather(row)
        drawn, place = np.empty((row.size, count), np.int64), np.empty(row.size, np.int8)
        for name in domain.unique():
            of_domain = np.flatnonzero((domain == name).to_numpy())
            drawn[of_domain], place[of_domain] = self.draw_candidates(
                name, user[of_domain], item[of_domain]
            )
        offsets = np.arange(0, (row.size + 1) * count, count, dtype=np.int32)
        columns = [
            pa.array(identity[order].view(np.int64)),
            domain.cast(pl.String).to_arrow().cast(pa.string()),
            self.user_id.gather(user).to_arrow().cast(pa.string()),
            windows.histories(flat.item),
            pa.ListArray.from_arrays(offsets, pa.array(drawn.reshape(-1))),
            pa.array(place),
            flat.frame["timestamp"].gather(row).to_arrow(),
        ]
        return pa.Table.from_arrays(columns, schema=SAMPLE_SCHEMA)


def build_samples(
    interactions: EncodedInteractions,
    item_indices: Mapping[str, IntArray],
    data: DataSettings,
    seed: int,
) -> Samples:
    """All samples that the new interactions of some users make possible; those of a first version are all new.

    found: *all* interactions of these users.
    items: the item indices of each domain, ascending. Every user must leave data.num_candidates - 1 items of each domain (`corpus.local.sample_files` checks it).
    """
    partition = _SampleBuilder(interactions, item_indices, data, seed)
    tables: dict[tuple[str, str], pa.Table] = {}
    dropped: Counter[str] = Counter()
    for domain, rows in partition.rows_by_domain.items():
        source, new = domain_source(domain, data), int(rows["new"].sum())
        training, whole = (
            _FlatSequences.from_frame(sequences.training_sequences(rows)),
            _FlatSequences.from_frame(rows),
        )
        for code, split in enumerate(SPLITS):
            # A training history holds nothing that was ever held out; that of a validation or test target is all that came before it.
            flat = training if split == TRAIN else whole
            targets = _target_windows(flat, data).filter_by_target_row(
                flat.mask(pl.col("new") & (pl.col("split") == code))
            )
            tables[source, split] = partition.build_table(source, flat, targets)
            new -= targets.target.size
        dropped["short_history"] += new
    mixed, first, of_mixed = _build_mixed_samples(partition)
    tables[MIXED, TRAIN] = mixed
    return Samples(tables, partition.new_interactions(), first, dropped + of_mixed)


def _target_windows(flat: _FlatSequences, data: DataSettings) -> HistoryWindows:
    return sequences.history_windows(flat.position, data.min_history, data.max_history)


def _build_mixed_samples(builder: _SampleBuilder) -> tuple[pa.Table, int, Counter[str]]:
    """Mixed samples of the targets that are possible now and were not in any earlier version; users who had none before; what is dropped."""
    data = builder.data
    flat = _FlatSequences.from_frame(sequences.mixed_sequences(builder.ordered_rows, data.domains))
    found, new = _target_windows(flat, data), flat.mask(pl.col("new"))
    of_new = found.filter_by_target_row(new)
    fits, dropped = _filter_relevant(flat, of_new, data)
    dropped["mixed_short_history"] = int(new.sum()) - of_new.target.size
    if new.all():
        return (
            builder.build_table(MIXED, flat, fits),
            np.unique(flat.user[fits.target]).size,
            dropped,
        )
    before = _earlier_mixed_targets(flat, data)
    fits, _ = _filter_relevant(flat, found.filter_by_target_row(~before), data)
    return (
        builder.build_table(MIXED, flat, fits),
        np.setdiff1d(flat.user[fits.target], flat.user[before]).size,
        dropped,
    )


def _filter_relevant(
    flat: _FlatSequences, windows: HistoryWindows, data: DataSettings
) -> tuple[HistoryWindows, Counter[str]]:
    domain = flat.frame["domain"].to_physical().cast(pl.Int64).to_numpy()
    return sequences.filter_relevant_windows(
        windows, flat.user, domain, data.mixed_min_domains, data.mixed_min_target_domain
    )


def _earlier_mixed_targets(flat: _FlatSequences, data: DataSettings) -> NDArray[np.bool_]:
    """Which rows of the mixed frame were targets of mixed samples in earlier versions [n]: found again as each of these versions found them."""
    before = np.zeros(flat.user.size, bool)
    numbered = flat.frame.with_row_index("row")
    old = numbered.filter(~pl.col("new"))
    for version in old["version"].unique().sort():
        users = old.filter(pl.col("version") == version).select("user").unique()
        then = sequences.add_positions(
            old.filter(pl.col("version") <= version).join(
                users, on="user", how="semi", maintain_order="left"
            ),
            "user",
        )
        as_it_was = _FlatSequences.from_frame(then)
        fits, _ = _filter_relevant(as_it_was, _target_windows(as_it_was, data), data)
        before[then["row"].to_numpy()[fits.target]] = True
    return before


def max_sample_counts(
    user_domain_counts: pl.DataFrame, data: DataSettings
) -> dict[tuple[str, str], int]:
    """How many samples each (source, split) can have: exact but for `mixed`, whose rules only take away, where all interactions are new.

    sizes: `Coded.sizes`; bounds of some users and of others add up. Sets the number of files.
    """
    grown = pl.col("new") < pl.col("size")
    enough = pl.lit(data.min_history)
    by_domain = user_domain_counts.group_by("domain").agg(
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
    bounds: dict[tuple[str, str], int] = {
        (domain_source(row["domain"], data), split): int(row[split])
        for row in by_domain.iter_rows(named=True)
        for split in SPLITS
    }
    of_domain = pl.when(grown).then("size").otherwise((pl.col("size") - 2).clip(0))
    training = (
        user_domain_counts.filter(pl.col("domain").is_in(list(data.domains)))
        .group_by("user")
        .agg(of_domain.sum().alias("size"))
    )
    bounds[MIXED, TRAIN] = int(training.select((pl.col("size") - enough).clip(0).sum()).item() or 0)
    return bounds

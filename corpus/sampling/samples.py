"""Builds samples from the interactions of a partition of users. Pure.

The same users give the same samples, however users are partitioned.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from corpus.sampling import candidates, hashing, sequences
from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.schemas import SAMPLE_SCHEMA, STORED_INTERACTION_SCHEMA
from corpus.sampling.sequences import HistoryWindows, IntArray
from corpus.sampling.source import MIXED, SPLITS, TEST, TRAIN, VALIDATION, domain_source
from corpus.settings import DataSettings


@dataclass(frozen=True)
class Samples:
    """What a version gains from the new interactions of some users.

    Attributes:
        tables: Samples by (source, split): SAMPLE_SCHEMA, sorted by their unsigned ids.
        new_interactions: The new interactions with their splits: STORED_INTERACTION_SCHEMA, sorted
            by user hash, user, domain, time and item.
        mixed_users: Number of users who get their first mixed samples.
        dropped: Number of new interactions that are the target of no sample, by reason.
    """

    tables: Mapping[tuple[str, str], pa.Table]
    new_interactions: pa.Table
    mixed_users: int
    dropped: Counter[str]


@dataclass(frozen=True)
class _FlatSequences:
    """A frame of sequences and some of its columns as arrays, which windows point into.

    Attributes:
        frame: Rows of `corpus.sampling.sequences`.
        user: User of each row [n].
        item: Item index of each row [n].
        position: Position of each row in its sequence [n].
        arrival_rank: Identifies a sample within its user and source [n].
    """

    frame: pl.DataFrame
    user: IntArray
    item: IntArray
    position: IntArray
    arrival_rank: IntArray

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> "_FlatSequences":
        names = ("user", "item_index", "position", "arrival_rank")
        return cls(frame, *(frame[name].cast(pl.Int64).to_numpy() for name in names))

    def mask(self, condition: pl.Expr) -> NDArray[np.bool_]:
        """Tells for each row whether it fulfils a condition [n]."""
        return self.frame.select(condition).to_series().to_numpy()


class _SampleBuilder:
    """Builds the samples of one partition of users; holds what its sources have in common."""

    def __init__(
        self,
        interactions: EncodedInteractions,
        item_indices: Mapping[str, IntArray],
        data: DataSettings,
        seed: int,
    ) -> None:
        self.item_indices = item_indices
        self.data = data
        self.seed = seed
        self.user_id = interactions.users["user_id"]
        self.user_hash = interactions.users["user_hash"].to_numpy().view(np.uint64)
        self.item_id = interactions.items["item_id"]
        item_columns = interactions.items.select(
            pl.col("domain", "item_index").gather(interactions.rows["item"])
        )
        self.ordered_rows = sequences.domain_sequences(interactions.rows.hstack(item_columns))
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
        """Renumbers items of a domain 0 .. n - 1, in the order of their indices."""
        return np.searchsorted(self.item_indices[domain], item_index)

    def draw_candidates(
        self, domain: str, user: IntArray, item_index: IntArray
    ) -> tuple[IntArray, NDArray[np.int8]]:
        """Draws the candidates of targets of one domain.

        Args:
            domain: Domain of the targets.
            user: User of each target [n].
            item_index: Item of each target [n].

        Returns:
            Candidates as item indices [n, candidates].
            Position of each target among its candidates [n].
        """
        key = hashing.hash_integers(self.seed, self.user_hash[user], item_index)
        numbers, target_position = candidates.draw_candidates(
            key,
            user,
            self.positions_in_domain(domain, item_index),
            self.interacted[domain],
            self.data.num_candidates,
        )
        return self.item_indices[domain][numbers], target_position

    def new_interactions(self) -> pa.Table:
        """Returns the new interactions in the form and order in which a corpus stores them."""
        new = self.ordered_rows.filter("new")
        user_columns = [
            self.user_id.gather(new["user"]),
            pl.Series("user_hash", self.user_hash[new["user"]].view(np.int64)),
        ]
        decoded = new.with_columns(
            *user_columns, self.item_id.gather(new["item"]), pl.col("domain").cast(pl.String)
        )
        stored = decoded.select(STORED_INTERACTION_SCHEMA.names)
        return stored.to_arrow().cast(STORED_INTERACTION_SCHEMA)

    def _sample_ids(
        self, source: str, user_hash: hashing.Hashes, arrival_rank: IntArray
    ) -> hashing.Hashes:
        """Returns the ids of samples [n], which also decide their order.

        An id is a hash of source, user and rank. Under data.users_together it is a hash of source
        and user, followed by the rank, so that a user's samples stay together and in order.
        """
        source_hash = hashing.hash_strings([source])
        if self.data.users_together:
            return hashing.member_ids(hashing.hash_integers(source_hash, user_hash), arrival_rank)
        return hashing.hash_integers(source_hash, user_hash, arrival_rank)

    def build_table(self, source: str, flat: _FlatSequences, windows: HistoryWindows) -> pa.Table:
        """Returns the samples of some windows, sorted by their unsigned ids."""
        ids = self._sample_ids(
            source, self.user_hash[flat.user[windows.target]], flat.arrival_rank[windows.target]
        )
        order = np.argsort(ids)
        row = windows.target[order]
        windows = HistoryWindows(row, windows.length[order])
        user = flat.user[row]
        item = flat.item[row]
        domain = flat.frame["domain"].gather(row)
        # Candidates are drawn domain by domain: mixed samples have targets of several.
        num_candidates = self.data.num_candidates
        drawn = np.empty((row.size, num_candidates), np.int64)
        target_position = np.empty(row.size, np.int8)
        for name in domain.unique():
            in_domain = np.flatnonzero((domain == name).to_numpy())
            drawn[in_domain], target_position[in_domain] = self.draw_candidates(
                name, user[in_domain], item[in_domain]
            )
        offsets = np.arange(0, (row.size + 1) * num_candidates, num_candidates, dtype=np.int32)
        columns = [
            pa.array(ids[order].view(np.int64)),
            domain.cast(pl.String).to_arrow().cast(pa.string()),
            self.user_id.gather(user).to_arrow().cast(pa.string()),
            windows.histories(flat.item),
            pa.ListArray.from_arrays(offsets, pa.array(drawn.reshape(-1))),
            pa.array(target_position),
            flat.frame["timestamp"].gather(row).to_arrow(),
        ]
        return pa.Table.from_arrays(columns, schema=SAMPLE_SCHEMA)


def build_samples(
    interactions: EncodedInteractions,
    item_indices: Mapping[str, IntArray],
    data: DataSettings,
    seed: int,
) -> Samples:
    """Builds all samples that the new interactions of some users make possible.

    Args:
        interactions: *All* interactions of these users, old and new.
        item_indices: Item indices of each domain, ascending. In each of their domains, every user
            must leave data.num_candidates - 1 items (`corpus.local.sample_files` checks it).
        data: Settings of the whole corpus.
        seed: Seed of the candidates.
    """
    builder = _SampleBuilder(interactions, item_indices, data, seed)
    tables: dict[tuple[str, str], pa.Table] = {}
    dropped: Counter[str] = Counter()
    for domain, rows in builder.rows_by_domain.items():
        source = domain_source(domain, data)
        num_without_sample = int(rows["new"].sum())
        training = _FlatSequences.from_frame(sequences.training_sequences(rows))
        whole = _FlatSequences.from_frame(rows)
        for code, split in enumerate(SPLITS):
            # A training history has nothing that was ever held out. The history of a validation or
            # test target has everything before it.
            flat = training if split == TRAIN else whole
            windows = _target_windows(flat, data).filter_by_target_row(
                flat.mask(pl.col("new") & (pl.col("split") == code))
            )
            tables[source, split] = builder.build_table(source, flat, windows)
            num_without_sample -= windows.target.size
        dropped["short_history"] += num_without_sample
    tables[MIXED, TRAIN], mixed_users, mixed_dropped = _build_mixed_samples(builder)
    return Samples(tables, builder.new_interactions(), mixed_users, dropped + mixed_dropped)


def _target_windows(flat: _FlatSequences, data: DataSettings) -> HistoryWindows:
    return sequences.history_windows(flat.position, data.min_history, data.max_history)


def _build_mixed_samples(builder: _SampleBuilder) -> tuple[pa.Table, int, Counter[str]]:
    """Builds the mixed samples whose target is possible now and was in no earlier version.

    Returns:
        The samples.
        Number of users who had no mixed sample before.
        Number of new interactions that are the target of no mixed sample, by reason.
    """
    data = builder.data
    flat = _FlatSequences.from_frame(sequences.mixed_sequences(builder.ordered_rows, data.domains))
    windows = _target_windows(flat, data)
    is_new = flat.mask(pl.col("new"))
    new_windows = windows.filter_by_target_row(is_new)
    selected, dropped = _filter_relevant(flat, new_windows, data)
    dropped["mixed_short_history"] = int(is_new.sum()) - new_windows.target.size
    if is_new.all():
        mixed_users = np.unique(flat.user[selected.target]).size
        return builder.build_table(MIXED, flat, selected), mixed_users, dropped
    # An old interaction can become a target too, if its history follows the rules only now.
    was_target = _earlier_mixed_targets(flat, data)
    selected, _ = _filter_relevant(flat, windows.filter_by_target_row(~was_target), data)
    mixed_users = np.setdiff1d(flat.user[selected.target], flat.user[was_target]).size
    return builder.build_table(MIXED, flat, selected), mixed_users, dropped


def _filter_relevant(
    flat: _FlatSequences, windows: HistoryWindows, data: DataSettings
) -> tuple[HistoryWindows, Counter[str]]:
    """Applies the rules for mixed windows with the settings of a corpus."""
    domain = flat.frame["domain"].to_physical().cast(pl.Int64).to_numpy()
    return sequences.filter_relevant_windows(
        windows, flat.user, domain, data.mixed_min_domains, data.mixed_min_target_domain
    )


def _earlier_mixed_targets(flat: _FlatSequences, data: DataSettings) -> NDArray[np.bool_]:
    """Tells which rows of the mixed frame were mixed targets in an earlier version [n].

    No version stores its mixed targets, so the windows of each earlier version are computed again.
    """
    was_target = np.zeros(flat.user.size, bool)
    old = flat.frame.with_row_index("row").filter(~pl.col("new"))
    for version in old["version"].unique().sort():
        # A version made samples only for the users to whom it added interactions.
        users = old.filter(pl.col("version") == version).select("user").unique()
        rows = old.filter(pl.col("version") <= version).join(
            users, on="user", how="semi", maintain_order="left"
        )
        frame_then = sequences.add_positions(rows, "user")
        flat_then = _FlatSequences.from_frame(frame_then)
        selected, _ = _filter_relevant(flat_then, _target_windows(flat_then, data), data)
        was_target[frame_then["row"].to_numpy()[selected.target]] = True
    return was_target


def max_sample_counts(
    user_domain_counts: pl.DataFrame, data: DataSettings
) -> dict[tuple[str, str], int]:
    """Returns how many samples each (source, split) can have, which sets the number of files.

    If all interactions are new, counts are exact except for `mixed`, whose rules only drop samples.
    Counts of separate groups of users add up.

    Args:
        user_domain_counts: `EncodedInteractions.user_domain_counts`.
        data: Settings of the whole corpus.
    """
    has_old = pl.col("new") < pl.col("size")
    has_new = pl.col("new") > 0
    min_history = pl.lit(data.min_history)
    # A sequence with old interactions gains at most one validation and one test sample, and one
    # training sample per new interaction. In a sequence that is all new, the last two interactions
    # are held out, and the first min_history have too short a history.
    by_domain = user_domain_counts.group_by("domain").agg(
        pl.when(has_old)
        .then("new")
        .otherwise((pl.col("size") - 2 - min_history).clip(0))
        .sum()
        .alias(TRAIN),
        (pl.when(has_old).then(True).otherwise(pl.col("size") - 2 >= min_history) & has_new)
        .sum()
        .alias(VALIDATION),
        (pl.when(has_old).then(True).otherwise(pl.col("size") - 1 >= min_history) & has_new)
        .sum()
        .alias(TEST),
    )
    bounds: dict[tuple[str, str], int] = {
        (domain_source(row["domain"], data), split): int(row[split])
        for row in by_domain.iter_rows(named=True)
        for split in SPLITS
    }
    # Mixed targets are training interactions, old ones included.
    num_training = pl.when(has_old).then("size").otherwise((pl.col("size") - 2).clip(0))
    mixed_sizes = (
        user_domain_counts.filter(pl.col("domain").is_in(list(data.domains)))
        .group_by("user")
        .agg(num_training.sum().alias("size"))
    )
    num_mixed = mixed_sizes.select((pl.col("size") - min_history).clip(0).sum()).item()
    bounds[MIXED, TRAIN] = int(num_mixed or 0)
    return bounds

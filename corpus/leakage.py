"""Does a corpus leak what it is to be tested on? Counted on its rows as they lie there, not on how they were made.

Every number but the last two is 0 in a sound corpus. Timestamps tell repeated purchases of one item apart in targets; a history has items alone, so
there an item counts as leaked if its user's interactions with it were all held out. Windows of text are of no user and are left out.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from corpus import delta, kept
from corpus.samples import MIXED
from corpus.sequences import SPLITS, TEST, TRAIN
from corpus.table import Corpus, Stream, named
from corpus.text import TEXT

SOUND = (
    "training_targets_held_out",
    "history_items_held_out",
    "rows_of_held_out_domains",
    "training_after_last_test",
    "sample_ids_twice",
    "test_samples_in_training",
)
"""Numbers that must be 0."""


def check(corpus: Corpus) -> dict[str, int]:
    """Count, over all versions up to this one:

    training_targets_held_out: training samples (domains to pre-train on, mixed) whose target is a validation or test interaction;
    history_items_held_out: items in their histories that the user only has in validation or test;
    rows_of_held_out_domains: rows of these sources with a target or history item of a domain that is held out;
    training_after_last_test: training interactions later than their user's last test interaction in the domain;
    sample_ids_twice: ids that several rows share; test_samples_in_training: test samples whose id is that of a training sample;
    test_items_never_trained: test samples whose item is the target of no training sample of its domain;
    test_items_bought_before: test samples whose user has the item in training too (a repeated purchase).
    """
    known = _coded(kept.all_of(corpus))
    facts = _Facts(known, list(corpus.commits[-1].metadata["held_out"]))
    found: Counter[str] = Counter(dict.fromkeys((*SOUND, "test_items_never_trained", "test_items_bought_before"), 0))
    found["training_after_last_test"] = _training_after_last_test(known)
    ids: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    targets: list[NDArray[np.int64]] = []
    for split in SPLITS:
        for stream in corpus.streams(split):
            if stream.source.startswith(TEXT):
                continue
            for rows in _files(stream):
                ids[split].append(rows["sample_id"].to_numpy())
                if split == TRAIN:
                    targets.append(rows["item"].unique().to_numpy())
                if split == TRAIN and (stream.source == MIXED or stream.source.startswith("domain/")):
                    found.update(facts.leaks(rows))
    trained = np.unique(np.concatenate(targets or [np.zeros(0, np.int64)]))
    for stream in corpus.streams(TEST):
        for rows in _files(stream):
            found["test_items_never_trained"] += int((~np.isin(rows["item"].to_numpy(), trained)).sum())
            found["test_items_bought_before"] += facts.bought_before(rows)
    every = np.concatenate([part for parts in ids.values() for part in parts])
    found["sample_ids_twice"] = every.size - np.unique(every).size
    found["test_samples_in_training"] = int(np.isin(np.concatenate(ids[TEST]), np.concatenate(ids[TRAIN])).sum()) if ids[TEST] and ids[TRAIN] else 0
    return dict(found)


class _Facts:
    """What is known of users and items, as sorted keys."""

    def __init__(self, known: pl.DataFrame, held_out: list[str]) -> None:
        self.users = known.select("user_id", "user").unique()
        self.size = int(known["item_index"].max() or 0) + 1  # type: ignore[arg-type]
        training = self._keys(known.filter(pl.col("split") == 0))
        self.training = training
        self.only_out = np.setdiff1d(self._keys(known.filter(pl.col("split") > 0)), training)
        self.out = known.filter(pl.col("split") > 0).select("user", "item_index", "timestamp")
        self.items_out = known.filter(pl.col("domain").is_in(held_out))["item_index"].unique().to_numpy()
        self.held_out = held_out

    def _keys(self, rows: pl.DataFrame) -> NDArray[np.int64]:
        return np.unique(rows["user"].to_numpy() * self.size + rows["item_index"].to_numpy())

    def leaks(self, rows: pl.DataFrame) -> Counter[str]:
        """What is wrong with some training samples."""
        coded = rows.join(self.users, on="user_id", how="left")
        held = coded.join(self.out, left_on=["user", "item", "timestamp"], right_on=["user", "item_index", "timestamp"], how="semi")
        history = coded.select("user", "history").explode("history", empty_as_null=False)
        keys = history["user"].to_numpy() * self.size + history["history"].to_numpy()
        foreign = np.isin(history["history"].to_numpy(), self.items_out).sum() + coded["domain"].is_in(self.held_out).sum()
        return Counter(
            training_targets_held_out=held.height,
            history_items_held_out=int(np.isin(keys, self.only_out).sum()),
            rows_of_held_out_domains=int(foreign),
        )

    def bought_before(self, rows: pl.DataFrame) -> int:
        """Samples whose user has their item in training."""
        coded = rows.join(self.users, on="user_id", how="left")
        return int(np.isin(coded["user"].to_numpy() * self.size + coded["item"].to_numpy(), self.training).sum())


def _coded(known: pl.DataFrame) -> pl.DataFrame:
    """Interactions with `user`, a number for each user."""
    return known.with_columns(user=pl.col("user_id").rank("dense").cast(pl.Int64) - 1)


def _training_after_last_test(known: pl.DataFrame) -> int:
    last = pl.col("timestamp").filter(pl.col("split") == SPLITS.index(TEST)).max().over("user_id", "domain")
    return known.filter((pl.col("split") == 0) & (pl.col("timestamp") > last)).height


def _files(stream: Stream) -> Iterator[pl.DataFrame]:
    """The rows of a stream, a file at a time, with `item`: the target's index."""
    for file in stream.files:
        with named(file.path):
            rows = pl.DataFrame(delta.open_parquet(file.path).read())
        yield rows.with_columns(item=pl.col("candidates").list.get(pl.col("target").cast(pl.Int64)))

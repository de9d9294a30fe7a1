"""Counts leakage in the rows of a corpus: training data that belongs to the test. Pure.

The rows are counted as they are stored, without relying on how they were built. In targets, the
timestamp tells repeated purchases of an item apart. A history has only items. So an item of it
counts as leaked if all interactions of its user with it are held out. Windows of text have no user
and are left out. Counts of separate groups of users, ids or items add up;
`corpus.inspect.inspection` goes through all of them.
"""

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
import polars as pl

from corpus.sampling.sequences import IntArray
from corpus.sampling.source import SPLITS, TEST, TRAIN

LEAK_CHECKS = {
    "training_targets_held_out": (
        "training samples (domains to pre-train on, mixed) whose target is a validation or test "
        "interaction"
    ),
    "history_items_held_out": (
        "history items of these samples that the user has only in validation or test"
    ),
    "rows_of_held_out_domains": (
        "targets and history items of these samples that belong to a held-out domain"
    ),
    "training_after_last_test": (
        "training interactions later than their user's last test interaction in the domain"
    ),
    "sample_ids_twice": "samples whose id another sample has already",
    "test_samples_in_training": "test samples whose id is that of a training sample",
}
"""Checks that count 0 in a sound corpus, each with what it counts, over all versions inspected."""

ALL_CHECKS = {
    **LEAK_CHECKS,
    "test_items_never_trained": "test samples whose item is the target of no training sample",
    "test_items_bought_before": (
        "test samples whose user has the item in training too (a repeated purchase)"
    ),
}
"""All checks; those that are not in LEAK_CHECKS are for information."""

_IS_TRAINING = pl.col("split") == SPLITS.index(TRAIN)
_IS_TEST = pl.col("split") == SPLITS.index(TEST)


def count_user_leaks(interactions: pl.DataFrame, samples: Iterable[pl.DataFrame]) -> Counter[str]:
    """Counts the leaks that the interactions of a sample's user reveal.

    Args:
        interactions: *All* interactions of some users: user_id, domain, item_index, timestamp,
            split.
        samples: Samples of these users, in batches: user_id, split, item (the target), timestamp,
            history.
    """
    users = interactions.select("user_id").unique().with_row_index("user")
    encoded = interactions.join(users, on="user_id").select(
        "user", "timestamp", "split", item="item_index"
    )
    training = encoded.filter(_IS_TRAINING)
    held_out = encoded.filter(~_IS_TRAINING)
    only_held_out = (
        held_out.select("user", "item").unique().join(training, on=["user", "item"], how="anti")
    )
    last_test = pl.col("timestamp").filter(_IS_TEST).max().over("user_id", "domain")
    late = interactions.filter(_IS_TRAINING & (pl.col("timestamp") > last_test))
    counts = Counter(training_after_last_test=late.height)
    for batch in samples:
        rows = batch.join(users, on="user_id")
        training_samples = rows.filter(_IS_TRAINING)
        test_samples = rows.filter(_IS_TEST)
        history = training_samples.select("user", item="history").explode(
            "item", empty_as_null=False
        )
        counts["training_targets_held_out"] += training_samples.join(
            held_out, on=["user", "item", "timestamp"], how="semi"
        ).height
        counts["history_items_held_out"] += history.join(
            only_held_out, on=["user", "item"], how="semi"
        ).height
        counts["test_items_bought_before"] += test_samples.join(
            training, on=["user", "item"], how="semi"
        ).height
    return counts


def count_held_out_rows(
    samples: pl.DataFrame, held_out_domains: Collection[str], held_out_items: IntArray
) -> Counter[str]:
    """Counts the targets and history items that belong to held-out domains.

    Args:
        samples: Training samples: domain, history.
        held_out_domains: Domains that are held out of pre-training.
        held_out_items: Indices of all their items.
    """
    num_targets = int(samples["domain"].is_in(list(held_out_domains)).sum())
    history = samples["history"].explode(empty_as_null=False).to_numpy()
    num_history_items = int(np.isin(history, held_out_items).sum())
    return Counter(rows_of_held_out_domains=num_targets + num_history_items)


def count_id_leaks(samples: pl.DataFrame) -> Counter[str]:
    """Counts ids that more than one sample has.

    Args:
        samples: sample_id and split of *all* samples that have one of some ids.
    """
    training = samples.filter(_IS_TRAINING)
    test = samples.filter(_IS_TEST)
    return Counter(
        sample_ids_twice=samples.height - samples["sample_id"].n_unique(),
        test_samples_in_training=test.join(training, on="sample_id", how="semi").height,
    )


def count_untrained_items(targets: pl.DataFrame) -> Counter[str]:
    """Counts the test samples whose item is the target of no training sample.

    Args:
        targets: item and split, with *all* rows of some items. An item has a row for each test
            sample that it is the target of, and at least one row if training samples have it.
    """
    training = targets.filter(_IS_TRAINING)
    test = targets.filter(_IS_TEST)
    return Counter(test_items_never_trained=test.join(training, on="item", how="anti").height)

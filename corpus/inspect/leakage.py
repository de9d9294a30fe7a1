"""Does a corpus leak what it is to be tested on? Counted on its rows as they lie there, not on how they were made. Pure.

Timestamps tell repeated purchases of one item apart in targets; a history has items alone, so
there an item counts as leaked if its user's interactions with it were all held out. Windows of text are of no user and are left out.

Counts of some users add up with those of others, as do those of some ids, and of some items: `corpus.inspect.inspection` walks over all of them.
"""

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
import polars as pl

from corpus.sampling.sequences import SPLITS, TEST, TRAIN, IntArray

LEAK_CHECKS = {
    "training_targets_held_out": "training samples (domains to pre-train on, mixed) whose target is a validation or test interaction",
    "history_items_held_out": "items in their histories that the user only has in validation or test",
    "rows_of_held_out_domains": "their targets and history items that are of a domain that is held out",
    "training_after_last_test": "training interactions later than their user's last test interaction in the domain",
    "sample_ids_twice": "samples whose id another sample has already",
    "test_samples_in_training": "test samples whose id is that of a training sample",
}
"""Numbers that are 0 in a sound corpus, and what each counts, over all versions up to the one that is looked at."""

ALL_CHECKS = {
    **LEAK_CHECKS,
    "test_items_never_trained": "test samples whose item is the target of no training sample",
    "test_items_bought_before": "test samples whose user has the item in training too (a repeated purchase)",
}
"""All numbers; those that SOUND does not have are for information."""

_IS_TRAINING, _IS_TEST = (
    pl.col("split") == SPLITS.index(TRAIN),
    pl.col("split") == SPLITS.index(TEST),
)


def count_user_leaks(interactions: pl.DataFrame, samples: Iterable[pl.DataFrame]) -> Counter[str]:
    """What is wrong with the interactions and samples of some users.

    known: *all* their interactions: user_id, domain, item_index, timestamp, split; samples: user_id, split, item (the target), timestamp, history.
    """
    users = interactions.select("user_id").unique().with_row_index("user")
    coded = interactions.join(users, on="user_id").select(
        "user", "timestamp", "split", item="item_index"
    )
    training, held_out = coded.filter(_IS_TRAINING), coded.filter(~_IS_TRAINING)
    only_held_out = (
        held_out.select("user", "item").unique().join(training, on=["user", "item"], how="anti")
    )
    last = pl.col("timestamp").filter(_IS_TEST).max().over("user_id", "domain")
    found = Counter(
        training_after_last_test=interactions.filter(
            _IS_TRAINING & (pl.col("timestamp") > last)
        ).height
    )
    for part in samples:
        rows = part.join(users, on="user_id")
        trained, tested = rows.filter(_IS_TRAINING), rows.filter(_IS_TEST)
        history = trained.select("user", item="history").explode("item", empty_as_null=False)
        found["training_targets_held_out"] += trained.join(
            held_out, on=["user", "item", "timestamp"], how="semi"
        ).height
        found["history_items_held_out"] += history.join(
            only_held_out, on=["user", "item"], how="semi"
        ).height
        found["test_items_bought_before"] += tested.join(
            training, on=["user", "item"], how="semi"
        ).height
    return found


def count_held_out_rows(
    samples: pl.DataFrame, held_out_domains: Collection[str], held_out_items: IntArray
) -> Counter[str]:
    """What training samples (domain, history) have of the domains that are held out, and of the items of these."""
    targets = int(samples["domain"].is_in(list(held_out_domains)).sum())
    history = samples["history"].explode(empty_as_null=False).to_numpy()
    return Counter(rows_of_held_out_domains=targets + int(np.isin(history, held_out_items).sum()))


def count_id_leaks(samples: pl.DataFrame) -> Counter[str]:
    """What is wrong with some ids. samples: sample_id and split of *all* samples that have one of these ids."""
    trained, tested = samples.filter(_IS_TRAINING), samples.filter(_IS_TEST)
    return Counter(
        sample_ids_twice=samples.height - samples["sample_id"].n_unique(),
        test_samples_in_training=tested.join(trained, on="sample_id", how="semi").height,
    )


def count_untrained_items(targets: pl.DataFrame) -> Counter[str]:
    """What is to be known of some items. targets: item and split, a row for every test sample of one of them, at least one for all that train it."""
    trained, tested = targets.filter(_IS_TRAINING), targets.filter(_IS_TEST)
    return Counter(test_items_never_trained=tested.join(trained, on="item", how="anti").height)

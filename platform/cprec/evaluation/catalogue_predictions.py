"""Tables of predictions over a whole catalogue, as stored in predictions.parquet. Pure.

A model that scores every item has an exact rank for every true item. A model that ranks only
retrieved items has none where the true item was not retrieved: that is a miss at every k. Either
way every metric can be computed from the table alone (docs/reference/file-formats.md).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cprec.evaluation.metrics import Metrics, Ranks, compute_metrics, compute_ranks, hits
from cprec.evaluation.predictions import UNNAMED_RANK, history_lengths

HR_CUTOFFS = (1, 3, 5, 10)
"""Values of k for which HR@k is reported."""
NDCG_CUTOFFS = (3, 5, 10)
"""Values of k for which NDCG@k is reported."""
RECALL_CUTOFFS = (20, 50, 100)
"""Values of k for which recall@k of what was retrieved is reported."""
BLOCK_BYTES = 1 << 28
"""Bytes of the scores that are held at a time."""

CATALOGUE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("user_id", pa.string()),
        ("history_length", pa.int32()),
        # Item index of the true item.
        ("target_item", pa.int64()),
        # Place of the true item among the retrieved, from 1. Null where it was not retrieved, and
        # for a model that scores every item.
        ("retrieved_rank", pa.int32()),
        # Items that the model ranks above the true item, and as high as it, itself included. Null
        # where the model did not rank it.
        ("better", pa.int64()),
        ("tied", pa.int64()),
        # Item indices and their scores, best first: those that were ranked, or the first of all.
        ("ranking", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
    ]
)
"""Columns of a table of predictions over a catalogue."""


def true_items(samples: pa.Table) -> NDArray[np.int64]:
    """Returns the item index of each sample's true item [n]."""
    columns = (samples[name].to_pylist() for name in ("candidates", "target"))
    return np.array([items[target] for items, target in zip(*columns, strict=True)], np.int64)


def from_all_scores(
    samples: pa.Table,
    blocks: Iterable[NDArray[np.floating[Any]]],
    items: NDArray[np.int64],
    k: int,
    exclude_history: bool,
) -> pa.Table:
    """Builds the predictions of a model that scored every item.

    Args:
        samples: Samples of the corpus [n].
        blocks: Scores of all items [rows, items] for consecutive samples; higher is better.
        items: The items, by their index in the catalogue, ascending [items].
        k: Items of a ranking that are kept.
        exclude_history: Whether items of the history come after all others.

    Raises:
        PlatformFault: A score is NaN.
    """
    targets = np.searchsorted(items, true_items(samples))
    histories = samples["history"].to_pylist()
    k = min(k, len(items))
    better, tied, rankings, tops = [], [], [], []
    start = 0
    for block in blocks:
        scores = np.array(block, dtype=np.float64)
        if exclude_history:
            for row, history in zip(scores, histories[start : start + len(scores)], strict=True):
                row[np.searchsorted(items, history)] = -np.inf
        ranks = compute_ranks(scores, targets[start : start + len(scores)])
        first = _first_places(scores, k)
        values = np.take_along_axis(scores, first, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        better.append(ranks.better_counts)
        tied.append(ranks.tied_counts)
        rankings += list(items[np.take_along_axis(first, order, axis=1)])
        tops += list(np.take_along_axis(values, order, axis=1))
        start += len(scores)
    return _to_table(
        samples,
        retrieved_rank=pa.nulls(len(samples), pa.int32()),
        better=np.concatenate(better),
        tied=np.concatenate(tied),
        ranking=rankings,
        scores=tops,
    )


def from_retrieved(
    samples: pa.Table,
    retrieved: NDArray[np.int64],
    ranked: NDArray[np.int64],
    scores: NDArray[np.float64],
    exclude_history: bool,
) -> pa.Table:
    """Builds the predictions of a model that ranked retrieved items.

    Args:
        samples: Samples of the corpus [n].
        retrieved: What was retrieved, best first [n, depth].
        ranked: The items that the model ranked, in any order [n, k].
        scores: Their scores [n, k]; higher is better.
        exclude_history: Whether items of the history come after all others. There are some among
            the ranked items where the catalogue has too few others.

    Raises:
        PlatformFault: A score is NaN.
    """
    if exclude_history:
        histories = samples["history"].to_pylist()
        seen = [np.isin(items, own) for items, own in zip(ranked, histories, strict=True)]
        scores = np.where(seen, -np.inf, scores)
    targets = true_items(samples)[:, None]
    in_retrieved, in_ranked = retrieved == targets, ranked == targets
    found, has_rank = in_retrieved.any(axis=1), in_ranked.any(axis=1)
    # Where the true item was not ranked, the first item stands in for it, and its rank is masked.
    ranks = compute_ranks(scores, in_ranked.argmax(axis=1))
    order = np.argsort(-scores, axis=1, kind="stable")
    return _to_table(
        samples,
        retrieved_rank=pa.array(in_retrieved.argmax(axis=1) + 1, pa.int32(), mask=~found),
        better=pa.array(ranks.better_counts, mask=~has_rank),
        tied=pa.array(ranks.tied_counts, mask=~has_rank),
        ranking=list(np.take_along_axis(ranked, order, axis=1)),
        scores=list(np.take_along_axis(scores, order, axis=1)),
    )


def to_ranks(predictions: pa.Table) -> Ranks:
    """Returns the ranks of the true items; one that was not ranked comes after all items."""
    better, tied = (
        predictions[name].fill_null(missing).to_numpy()
        for name, missing in (("better", UNNAMED_RANK), ("tied", 1))
    )
    return Ranks(better, tied)


def recall(predictions: pa.Table, k: int) -> NDArray[np.float64]:
    """Returns each sample's contribution to recall@k of what was retrieved [n].

    A model that scores every item retrieves by its own ranking.
    """
    retrieved_rank = predictions["retrieved_rank"]
    retrieved = retrieved_rank.fill_null(UNNAMED_RANK).to_numpy() <= k
    return np.where(retrieved_rank.is_null().to_numpy(), hits(to_ranks(predictions), k), retrieved)


def to_metrics(predictions: pa.Table, model: str, domain: str) -> Metrics:
    """Computes the contents of metrics.json from predictions alone.

    Args:
        predictions: Table of predictions over a catalogue.
        model: Label of the model.
        domain: Domain of the samples.
    """
    metrics = compute_metrics(
        model,
        domain,
        to_ranks(predictions),
        predictions["history_length"].to_numpy(),
        mode="catalogue",
        hr_cutoffs=HR_CUTOFFS,
        ndcg_cutoffs=NDCG_CUTOFFS,
    )
    recalls = {str(k): float(recall(predictions, k).mean()) for k in RECALL_CUTOFFS}
    return {**metrics, "recall": recalls}


def _first_places(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Returns the places of the k highest scores of each row [n, k], ascending.

    Of scores that tie for the last place, the first ones are taken.
    """
    lowest = np.partition(scores, -k, axis=1)[:, -k, None]
    above, ties = scores > lowest, scores == lowest
    room = k - above.sum(axis=1, keepdims=True)
    taken = above | (ties & (np.cumsum(ties, axis=1) <= room))
    return np.nonzero(taken)[1].reshape(len(scores), k)


def _to_table(samples: pa.Table, **columns: Any) -> pa.Table:
    """Returns a table of predictions with the columns of its samples."""
    return pa.table(
        {
            "sample_id": samples["sample_id"],
            "user_id": samples["user_id"],
            "history_length": history_lengths(samples),
            "target_item": true_items(samples),
            **columns,
        },
        schema=CATALOGUE_SCHEMA,
    )

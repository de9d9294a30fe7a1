"""HR@k and NDCG@k from the scores of candidates, ties counted by expectation (docs: method, "Metrics").

A tie is resolved by a fair draw, and what is reported is that draw's expectation: a model that scores everything alike gets HR@1 = 1/20, never 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import PlatformFault

HR_CUTOFFS, NDCG_CUTOFFS = (1, 3, 5), (3, 5)

HISTORY_SLICES: Mapping[str, tuple[int, float]] = {
    "sparse": (3, 5),
    "medium": (5, 9),
    "dense": (9, np.inf),
}
"""History lengths [from, to) of each slice (paper Sec. 5.4)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """Where the true item stands, per sample. better: [n] candidates that score higher; tied: [n] that score the same, itself included."""

    better_count: NDArray[np.int64]
    tied_count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.better_count)

    @property
    def expected_rank(self) -> Floats:
        """[n] mean of the tied positions, counted from 1."""
        return np.asarray(self.better_count + (self.tied_count + 1) / 2, dtype=np.float64)

    def select(self, mask: NDArray[np.bool_]) -> "Ranks":
        """The ranks of some samples. rows: [n] mask."""
        return Ranks(self.better_count[mask], self.tied_count[mask])


def compute_ranks(scores: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]) -> Ranks:
    """Ranks of the true items. scores: [n, candidates], higher is better; target: [n] positions of the true items.

    Raises PlatformFault for NaN, which has no rank: a model that produces it is broken, and must not be given one.
    """
    if broken := int(np.isnan(scores).any(axis=1).sum()):
        raise PlatformFault(
            f"{broken} of {len(scores)} samples have a NaN score; look for overflow (model.precision) or a checkpoint that diverged"
        )
    true = np.take_along_axis(scores, np.asarray(targets, dtype=np.int64)[:, None], axis=1)
    return Ranks((scores > true).sum(axis=1), (scores == true).sum(axis=1))


def hits(ranks: Ranks, k: int) -> Floats:
    """[n] each sample's contribution to HR@k: the chance that the true item is among the first k."""
    return np.asarray(
        np.clip(k - ranks.better_count, 0, ranks.tied_count) / ranks.tied_count, dtype=np.float64
    )


def discounted_gains(ranks: Ranks, k: int) -> Floats:
    """[n] each sample's contribution to NDCG@k (one relevant item, so the ideal gain is 1): mean of 1/log2(1 + position) over the tied positions."""
    gain_up_to = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return np.asarray(
        (
            gain_up_to[np.minimum(ranks.better_count + ranks.tied_count, k)]
            - gain_up_to[np.minimum(ranks.better_count, k)]
        )
        / ranks.tied_count,
        dtype=np.float64,
    )


@dataclass(frozen=True)
class GeneratedAnswers:
    """What is known of generated answers beside their ranks. valid: [n] by rule (exact, llara); right: [n], true where the llara rule names the
    true item."""

    valid: Mapping[str, NDArray[np.bool_]]
    correct: NDArray[np.bool_]


def compute_metrics(
    model: str,
    domain: str,
    ranks: Ranks,
    history_lengths: NDArray[np.integer[Any]],
    generated: GeneratedAnswers | None = None,
    mode: str = "score",
) -> dict[str, Any]:
    """The object of metrics.json. history_length: [n] items that each sample's history holds in the corpus; mode: score, generate or constrained.

    Where candidates were scored, `valid_ratio` and `hr1_of_valid` are null: there is no text that could be invalid. HR@1 is of all samples,
    `hr1_of_valid` of those that LLaRA's rule calls valid (method.md, "Metrics").
    """
    return {
        "model": model,
        "domain": domain,
        **_average_hr_and_ndcg(ranks),
        "valid_ratio": {
            rule: _mean(generated.valid[rule].astype(float)) if generated else None
            for rule in ("exact", "llara")
        },
        "hr1_of_valid": _mean(generated.correct[generated.valid["llara"]].astype(float))
        if generated
        else None,
        "slices": {
            name: _average_hr_and_ndcg(ranks.select(rows))
            for name, rows in _iter_slices(np.asarray(history_lengths))
        },
        "mode": mode,
    }


def average_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several objects of `metrics`, number by number: one model, several seeds. What is no number is the first one's."""
    first = results[0]
    if len(results) == 1:
        return dict(first)
    mean: dict[str, Any] = {}
    for key, value in first.items():
        values = [result[key] for result in results]
        if isinstance(value, Mapping):
            mean[key] = average_metrics(values)
        else:
            mean[key] = float(np.mean(values)) if isinstance(value, float) else value
    return mean


def _average_hr_and_ndcg(ranks: Ranks) -> dict[str, Any]:
    return {
        "n": len(ranks),
        "hr": {str(k): _mean(hits(ranks, k)) for k in HR_CUTOFFS},
        "ndcg": {str(k): _mean(discounted_gains(ranks, k)) for k in NDCG_CUTOFFS},
    }


def _mean(values: Floats) -> float | None:
    """None for an empty slice: it has no average, and JSON has no NaN."""
    return float(values.mean()) if len(values) else None


def _iter_slices(
    history_lengths: NDArray[np.integer[Any]],
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for name, (start, end) in HISTORY_SLICES.items():
        yield name, (history_lengths >= start) & (history_lengths < end)

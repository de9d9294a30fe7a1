"""Computes HR@k and NDCG@k from scores of candidates (docs/concepts.md, "Measures").

Ties are resolved by a fair draw, and the expectation over that draw is reported. So a model that
scores all candidates alike gets HR@1 = 1/20, never 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from cluster.errors import PlatformFault

HR_CUTOFFS = (1, 3, 5)
"""Values of k for which HR@k is reported."""
NDCG_CUTOFFS = (3, 5)
"""Values of k for which NDCG@k is reported."""

HISTORY_SLICES: Mapping[str, tuple[int, float]] = {
    "sparse": (3, 5),
    "medium": (5, 9),
    "dense": (9, np.inf),
}
"""History lengths [from, to) of each slice (paper Sec. 5.4)."""

Floats = NDArray[np.float64]


class RankMetrics(TypedDict):
    """HR@k and NDCG@k over some samples.

    Attributes:
        n: Number of samples.
        hr: HR@k by k; null without samples.
        ndcg: NDCG@k by k; null without samples.
    """

    n: int
    hr: dict[str, float | None]
    ndcg: dict[str, float | None]


class Metrics(RankMetrics):
    """The content of metrics.json.

    Attributes:
        n: Number of samples.
        hr: HR@k by k; null without samples.
        ndcg: NDCG@k by k; null without samples.
        model: What was scored.
        domain: Domain of the samples.
        valid_ratio: By rule, the fraction of answers that name a candidate: `exact` if they equal
            one, `llara` if they contain exactly one. None for scored candidates.
        hr1_of_valid: HR@1 over the answers that are valid by `llara`. None for scored candidates.
        slices: The samples by length of their history (items): `sparse` has 3 or 4, `medium` 5 to
            8, `dense` 9 and more.
        mode: How the model answered: `score`, `generate` or `constrained`; or, since 0.3.0,
            `catalogue` where it ranked the whole catalogue.
        length_correlation: Mean rank correlation of a sample's scores and the lengths of its
            candidates' titles. None for generated answers; absent for a catalogue.
        recall: Of a catalogue only: recall@k by k of what was retrieved, which is HR@k of a model
            that scores every item.
        inputs: What the predictions depend on: equal inputs are not scored again. Absent where
            these metrics are part of a comparison.
    """

    model: str
    domain: str
    valid_ratio: dict[str, float | None]
    hr1_of_valid: float | None
    slices: dict[str, RankMetrics]
    mode: str
    length_correlation: NotRequired[float | None]
    recall: NotRequired[dict[str, float]]
    inputs: NotRequired[dict[str, Any]]


class VersionMetrics(Metrics):
    """The metrics of a registered version.

    Attributes:
        split: Split of the samples.
        corpus_version: Version of the corpus that they are of.
        chance: HR@1 of a random choice among the candidates.
    """

    split: str
    corpus_version: int
    chance: float


@dataclass(frozen=True)
class Ranks:
    """Ranks of the true items of n samples.

    Attributes:
        better_counts: Candidates that score higher than the true item [n].
        tied_counts: Candidates that score the same, the true item included [n].
    """

    better_counts: NDArray[np.int64]
    tied_counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.better_counts)

    @property
    def expected_rank(self) -> Floats:
        """Mean rank if ties are broken at random [n], counted from 1."""
        return np.asarray(self.better_counts + (self.tied_counts + 1) / 2, dtype=np.float64)

    def select(self, mask: NDArray[np.bool_]) -> "Ranks":
        """Returns the ranks of the samples that a mask [n] selects."""
        return Ranks(self.better_counts[mask], self.tied_counts[mask])


def compute_ranks(scores: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]) -> Ranks:
    """Ranks the true items among the candidates.

    Args:
        scores: Scores [n, candidates]; higher is better.
        targets: Positions of the true items among the candidates [n].

    Raises:
        PlatformFault: A score is NaN. It has no rank, and the model that produced it is broken.
    """
    if nan_samples := int(np.isnan(scores).any(axis=1).sum()):
        raise PlatformFault(
            f"{nan_samples} of {len(scores)} samples have a NaN score; look for overflow "
            "(model.precision) or a checkpoint that diverged"
        )
    true = np.take_along_axis(scores, np.asarray(targets, dtype=np.int64)[:, None], axis=1)
    return Ranks((scores > true).sum(axis=1), (scores == true).sum(axis=1))


def hits(ranks: Ranks, k: int) -> Floats:
    """Returns each sample's contribution to HR@k [n].

    It is the probability that the true item is among the first k if ties are broken at random.
    """
    return np.asarray(
        np.clip(k - ranks.better_counts, 0, ranks.tied_counts) / ranks.tied_counts, dtype=np.float64
    )


def discounted_gains(ranks: Ranks, k: int) -> Floats:
    """Returns each sample's contribution to NDCG@k [n].

    It is the mean of 1 / log2(1 + rank) over the ranks that a fair draw may give, with 0 for ranks
    above k. One item is relevant, so the ideal gain is 1.
    """
    gain_up_to = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    last = np.minimum(ranks.better_counts + ranks.tied_counts, k)
    first = np.minimum(ranks.better_counts, k)
    return np.asarray((gain_up_to[last] - gain_up_to[first]) / ranks.tied_counts, dtype=np.float64)


def length_correlations(scores: NDArray[np.floating[Any]], lengths: NDArray[np.int64]) -> Floats:
    """Returns each sample's rank correlation of its candidates' scores and title lengths [n].

    Close to -1 or 1, a model ranks by the length of titles, whatever they say. It is NaN where all
    scores or all lengths are equal.

    Args:
        scores: Scores [n, candidates].
        lengths: Characters of the candidates' titles [n, candidates].
    """
    from scipy import stats  # takes seconds to load, and is needed here alone

    score_ranks, length_ranks = (
        ranks - ranks.mean(axis=1, keepdims=True)
        for ranks in (stats.rankdata(values, axis=1) for values in (scores, lengths))
    )
    covariance = (score_ranks * length_ranks).sum(axis=1)
    scale = np.sqrt((score_ranks**2).sum(axis=1) * (length_ranks**2).sum(axis=1))
    unknown = np.full(len(scores), np.nan)
    return np.asarray(np.divide(covariance, scale, out=unknown, where=scale > 0))


@dataclass(frozen=True)
class GeneratedAnswers:
    """What is known about generated answers besides their ranks.

    Attributes:
        valid: For each rule (`exact`, `llara`), whether the answer names a candidate [n].
        correct: Whether the answer names the true item by the rule `llara` [n].
    """

    valid: Mapping[str, NDArray[np.bool_]]
    correct: NDArray[np.bool_]


def compute_metrics(
    model: str,
    domain: str,
    ranks: Ranks,
    history_lengths: NDArray[np.integer[Any]],
    generated: GeneratedAnswers | None = None,
    mode: str = "score",
    hr_cutoffs: Sequence[int] = HR_CUTOFFS,
    ndcg_cutoffs: Sequence[int] = NDCG_CUTOFFS,
) -> Metrics:
    """Computes the contents of metrics.json.

    HR@1 is over all samples. `hr1_of_valid` is over the samples whose answer is valid by the rule
    `llara`. Where candidates were scored, `valid_ratio` and `hr1_of_valid` are null, because there
    is no text that could be invalid.

    Args:
        model: Label of the model.
        domain: Domain of the samples.
        ranks: Ranks of the true items of n samples.
        history_lengths: Items in each sample's history in the corpus [n].
        generated: The generated answers; None where candidates were scored.
        mode: How the model was evaluated: `score`, `generate`, `constrained` or `catalogue`.
        hr_cutoffs: Values of k for which HR@k is computed.
        ndcg_cutoffs: Values of k for which NDCG@k is computed.
    """
    whole = _average_hr_and_ndcg(ranks, hr_cutoffs, ndcg_cutoffs)
    return {
        "model": model,
        "domain": domain,
        "n": whole["n"],
        "hr": whole["hr"],
        "ndcg": whole["ndcg"],
        "valid_ratio": {
            rule: _mean(generated.valid[rule].astype(float)) if generated else None
            for rule in ("exact", "llara")
        },
        "hr1_of_valid": _mean(generated.correct[generated.valid["llara"]].astype(float))
        if generated
        else None,
        "slices": {
            name: _average_hr_and_ndcg(ranks.select(mask), hr_cutoffs, ndcg_cutoffs)
            for name, mask in _iter_slices(np.asarray(history_lengths))
        },
        "mode": mode,
    }


def average_metrics(results: Sequence[Metrics]) -> Metrics:
    """Averages the metrics of one model over its seeds, number by number.

    Values that are not floats are those of the first seed.
    """
    return cast(Metrics, _average(results))


def _average(values: Sequence[Any]) -> Any:
    """Returns the mean of floats, or of each entry of mappings; else the first value.

    What a seed does not have, such as HR@1 of valid answers where none is valid, does not count.
    """
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _average([value[key] for value in values]) for key in first}
    floats = [value for value in values if isinstance(value, float)]
    return float(np.mean(floats)) if floats else first


def _average_hr_and_ndcg(
    ranks: Ranks, hr_cutoffs: Sequence[int], ndcg_cutoffs: Sequence[int]
) -> RankMetrics:
    """Returns the number of samples, and HR@k and NDCG@k over them."""
    return {
        "n": len(ranks),
        "hr": {str(k): _mean(hits(ranks, k)) for k in hr_cutoffs},
        "ndcg": {str(k): _mean(discounted_gains(ranks, k)) for k in ndcg_cutoffs},
    }


def _mean(values: Floats) -> float | None:
    """Returns the mean, or None for an empty slice, because JSON has no NaN."""
    return float(values.mean()) if len(values) else None


def _iter_slices(
    history_lengths: NDArray[np.integer[Any]],
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yields the name of each slice of `HISTORY_SLICES`, and the mask of its samples [n]."""
    for name, (start, end) in HISTORY_SLICES.items():
        yield name, (history_lengths >= start) & (history_lengths < end)

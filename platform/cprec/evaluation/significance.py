"""Tests whether two models differ on the same samples.

There is a paired t-test with its confidence interval (paper Sec. 5.1.4), a permutation test, and
Holm's correction for several data sets. Wilson's bound tests one model against chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import PlatformFault


@dataclass(frozen=True)
class PairedTest:
    """Result of a paired t-test.

    Attributes:
        n: Number of pairs.
        difference: Mean of (model - reference).
        low: Lower end of the difference's confidence interval; None if it is unbounded.
        high: Upper end of the interval; None if it is unbounded.
        p: Two-sided p-value of the hypothesis that there is no difference.
        confidence: Confidence level of the interval.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float
    confidence: float


def paired_t_test(
    reference: NDArray[np.floating[Any]], model: NDArray[np.floating[Any]], confidence: float = 0.95
) -> PairedTest:
    """Compares two models by their contributions to one metric.

    The cases without spread are defined as follows:
    - All differences are 0: the models are the same, p = 1.
    - All differences are equal, but not 0: the t statistic is infinite, p = 0, and the interval is
      a point.
    - There is a single pair: it shows nothing, p = 1, and the interval is unbounded.

    Args:
        reference: Contribution of each sample under the reference model [n].
        model: Contribution of the same samples in the same order under the other model [n].
        confidence: Confidence level of the interval.

    Raises:
        PlatformFault: The samples do not pair up, or there are none.
    """
    if reference.shape != model.shape or reference.ndim != 1 or not len(reference):
        raise PlatformFault(
            "a paired test takes the same samples twice, seen: "
            f"shapes {reference.shape} and {model.shape}"
        )
    differences = np.asarray(model, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    n = len(differences)
    mean = float(differences.mean())
    if n == 1:
        return PairedTest(1, mean, None, None, 1.0, confidence)
    if np.ptp(differences) == 0:
        return PairedTest(n, mean, mean, mean, 1.0 if mean == 0 else 0.0, confidence)
    from scipy import stats  # takes seconds to load, and is needed here alone

    standard_error = float(differences.std(ddof=1)) / np.sqrt(n)
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * standard_error
    p = 2 * float(stats.t.sf(abs(mean) / standard_error, n - 1))
    return PairedTest(n, mean, mean - half_width, mean + half_width, p, confidence)


def compare_seeds(
    reference: NDArray[np.floating[Any]], model: NDArray[np.floating[Any]]
) -> PairedTest | None:
    """Compares two models by the means of their seeds (paper Sec. 5.1.4).

    A reference with a single seed, such as the base, is compared with each seed of the model.

    Args:
        reference: Contributions of the samples under the reference model [seeds, n].
        model: Contributions of the same samples under the other model [seeds, n].

    Returns:
        None where seeds do not pair up, or the model has only one.
    """
    if len(model) < 2 or len(reference) not in (1, len(model)):
        return None
    return paired_t_test(np.broadcast_to(reference.mean(axis=1), len(model)), model.mean(axis=1))


def permutation_test(
    reference: NDArray[np.floating[Any]],
    model: NDArray[np.floating[Any]],
    draws: int = 9_999,
    seed: int = 0,
) -> float:
    """Compares two models without assuming a normal distribution.

    The sign of each pair's difference is flipped at random. The observed signs count as one of the
    draws, so the p-value is never below 1 / (draws + 1).

    Args:
        reference: Contribution of each sample under the reference model [n].
        model: Contribution of the same samples in the same order under the other model [n].
        draws: Number of random assignments of signs.
        seed: Seed of the assignments.

    Returns:
        The two-sided p-value of the hypothesis that there is no difference.
    """
    differences = np.asarray(model, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    observed = abs(float(differences.sum()))
    # Pairs whose differences have one size are exchangeable: a draw is fully described by how many
    # of them are positive, which is binomial.
    rng = np.random.default_rng(seed)
    positive = rng.binomial(counts, 0.5, size=(draws, len(counts)))
    sums = np.abs((2 * positive - counts) @ sizes)
    # The tolerance counts sums that differ from the observed one by rounding alone as equal to it.
    return float((1 + (sums >= observed - 1e-9 * max(observed, 1.0)).sum()) / (draws + 1))


def wilson_interval(fraction: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the two-sided confidence interval of a proportion by Wilson's score.

    For a mean of values between 0 and 1, such as HR@1 with ties, the interval is conservative:
    their variance is at most that of hits and misses with the same mean.

    Args:
        fraction: Observed proportion.
        n: Number of samples, at least 1.
        confidence: Probability that the true proportion is in the interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = fraction + z * z / (2 * n)
    spread = z * np.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return float(max(0.0, (centre - spread) / scale)), float(min(1.0, (centre + spread) / scale))


def wilson_lower_bound(fraction: float, n: int, confidence: float) -> float:
    """Returns the one-sided lower bound of a proportion by Wilson's score.

    Args:
        fraction: Observed proportion.
        n: Number of samples, at least 1.
        confidence: Probability that the true proportion is not below the bound.
    """
    return wilson_interval(fraction, n, 2 * confidence - 1)[0]


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values of several tests by Holm's step-down procedure.

    Rejecting all tests whose corrected p-value is below a level makes a false rejection, in any of
    them, no more likely than that level.

    Args:
        p_values: The p-value of each test.

    Returns:
        The corrected p-values, in the same order.
    """
    order = np.argsort(p_values, kind="stable")
    stepped = (
        np.maximum.accumulate(
            np.asarray(p_values, dtype=np.float64)[order]
            * (len(p_values) - np.arange(len(p_values)))
        )
        if len(p_values)
        else np.zeros(0)
    )
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]

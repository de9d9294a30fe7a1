"""Whether two models differ on the same samples: paired t-test (paper Sec. 5.1.4) with the confidence interval that belongs to it, permutation test,
and Holm's correction for several data sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cluster.errors import PlatformFault


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison. difference: mean of (model - reference); low, high: its confidence interval (None: unbounded);
    p: two-sided, of no difference."""

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float
    confidence: float


def paired_t_test(
    reference: NDArray[np.floating[Any]], model: NDArray[np.floating[Any]], confidence: float = 0.95
) -> PairedTest:
    """Compare two models by their contributions to one metric, [n] each, sample by sample in the same order.

    Where all differences are one value there is no spread to test with. If that value is 0, the models are the same: p = 1. If it is not,
    the t statistic is infinite: p = 0, and the interval is a point. A single pair says nothing: p = 1 and an unbounded interval.
    Raises PlatformFault when the samples do not pair up or there are none.
    """
    if reference.shape != model.shape or reference.ndim != 1 or not len(reference):
        raise PlatformFault(
            f"a paired test takes the same samples twice, seen: shapes {reference.shape} and {model.shape}"
        )
    differences = np.asarray(model, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return PairedTest(1, mean, None, None, 1.0, confidence)
    if np.ptp(differences) == 0:
        return PairedTest(n, mean, mean, mean, 1.0 if mean == 0 else 0.0, confidence)
    error = float(differences.std(ddof=1)) / np.sqrt(n)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return PairedTest(n, mean, mean - reach, mean + reach, p, confidence)


def permutation_test(
    reference: NDArray[np.floating[Any]],
    model: NDArray[np.floating[Any]],
    draws: int = 9_999,
    seed: int = 0,
) -> float:
    """Two-sided p of no difference, by flipping the sign of each pair's difference at random: no normality is assumed.

    reference, model: [n] as in `paired`. The observed assignment counts as one of the draws, so p is never below 1 / (draws + 1).
    """
    differences = np.asarray(model, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    values, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    observed = abs(float(differences.sum()))
    # Pairs with differences of one size are exchangeable: how many of them stay positive is all that matters.
    rng = np.random.default_rng(seed)
    kept = rng.binomial(counts, 0.5, size=(draws, len(counts)))
    sums = np.abs((2 * kept - counts) @ values)
    return float((1 + (sums >= observed - 1e-9 * max(observed, 1.0)).sum()) / (draws + 1))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p as if it were the only one, so that all of them together err with the chance that one is tested at."""
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

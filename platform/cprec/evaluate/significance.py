"""Whether two models differ on the same samples: paired t-test (paper Sec. 5.1.4) with the confidence interval that belongs to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cluster.errors import PlatformFault


@dataclass(frozen=True)
class Paired:
    """A paired comparison. difference: mean of (model - reference); low, high: its confidence interval (None: unbounded);
    p: two-sided, of no difference."""

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float
    confidence: float


def paired(reference: NDArray[np.floating[Any]], model: NDArray[np.floating[Any]], confidence: float = 0.95) -> Paired:
    """Compare two models by their contributions to one metric, [n] each, sample by sample in the same order.

    Where all differences are one value there is no spread to test with. If that value is 0, the models are the same: p = 1. If it is not,
    the t statistic is infinite: p = 0, and the interval is a point. A single pair says nothing: p = 1 and an unbounded interval.
    Raises PlatformFault when the samples do not pair up or there are none.
    """
    if reference.shape != model.shape or reference.ndim != 1 or not len(reference):
        raise PlatformFault(f"a paired test takes the same samples twice, seen: shapes {reference.shape} and {model.shape}")
    differences = np.asarray(model, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Paired(1, mean, None, None, 1.0, confidence)
    if np.ptp(differences) == 0:
        return Paired(n, mean, mean, mean, 1.0 if mean == 0 else 0.0, confidence)
    error = float(differences.std(ddof=1)) / np.sqrt(n)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Paired(n, mean, mean - reach, mean + reach, p, confidence)

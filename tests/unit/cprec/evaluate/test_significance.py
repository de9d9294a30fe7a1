"""The paired test against scipy's, and where it has nothing to test with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cluster.errors import PlatformFault
from cprec.evaluate.significance import paired

contributions = st.sampled_from([0.0, 0.05, 0.5, 1.0])


@given(st.lists(st.tuples(contributions, contributions), min_size=2, max_size=60).filter(lambda xs: len({b - a for a, b in xs}) > 1))
def test_equals_scipy(pairs: list[tuple[float, float]]) -> None:
    reference, model = np.array(pairs).T
    seen, expected = paired(reference, model), stats.ttest_rel(model, reference)
    interval = expected.confidence_interval(0.95)
    assert seen.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert [seen.low, seen.high] == pytest.approx([interval.low, interval.high])
    assert seen.difference == pytest.approx(float(model.mean() - reference.mean()))


@given(st.lists(st.tuples(contributions, contributions), min_size=2, max_size=60))
def test_the_interval_excludes_zero_exactly_where_p_is_small(pairs: list[tuple[float, float]]) -> None:
    reference, model = np.array(pairs).T
    seen, swapped = paired(reference, model), paired(model, reference)
    assert seen.low is not None
    assert seen.high is not None
    assert (seen.p < 0.05) == (not seen.low <= 0 <= seen.high)
    assert (swapped.difference, swapped.p) == (-seen.difference, seen.p)


def test_without_spread() -> None:
    same, better = paired(np.ones(9), np.ones(9)), paired(np.zeros(9), np.ones(9))
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    assert (better.p, better.difference, better.low, better.high) == (0.0, 1.0, 1.0, 1.0)
    single = paired(np.zeros(1), np.ones(1))
    assert (single.p, single.low, single.high) == (1.0, None, None)


def test_samples_must_pair_up() -> None:
    with pytest.raises(PlatformFault, match="same samples"):
        paired(np.zeros(3), np.zeros(4))
    with pytest.raises(PlatformFault, match="same samples"):
        paired(np.zeros(0), np.zeros(0))

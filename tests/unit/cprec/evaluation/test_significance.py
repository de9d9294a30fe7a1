"""The paired test equals scipy's, and is defined where differences have no spread."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cluster.errors import PlatformFault
from cprec.evaluation.significance import holm_correction, paired_t_test, permutation_test

contributions = st.sampled_from([0.0, 0.05, 0.5, 1.0])


@given(
    st.lists(st.tuples(contributions, contributions), min_size=2, max_size=60).filter(
        lambda xs: len({b - a for a, b in xs}) > 1
    )
)
def test_equals_scipy(pairs: list[tuple[float, float]]) -> None:
    reference, model = np.array(pairs).T
    result = paired_t_test(reference, model)
    expected = stats.ttest_rel(model, reference)
    interval = expected.confidence_interval(0.95)
    assert result.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert [result.low, result.high] == pytest.approx([interval.low, interval.high])
    assert result.difference == pytest.approx(float(model.mean() - reference.mean()))


@given(st.lists(st.tuples(contributions, contributions), min_size=2, max_size=60))
def test_the_interval_excludes_zero_exactly_where_p_is_small(
    pairs: list[tuple[float, float]],
) -> None:
    reference, model = np.array(pairs).T
    result = paired_t_test(reference, model)
    swapped = paired_t_test(model, reference)
    assert result.low is not None
    assert result.high is not None
    assert (result.p < 0.05) == (not result.low <= 0 <= result.high)
    assert (swapped.difference, swapped.p) == (-result.difference, result.p)


def test_differences_without_spread() -> None:
    same = paired_t_test(np.ones(9), np.ones(9))
    better = paired_t_test(np.zeros(9), np.ones(9))
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    assert (better.p, better.difference, better.low, better.high) == (0.0, 1.0, 1.0, 1.0)
    single = paired_t_test(np.zeros(1), np.ones(1))
    assert (single.p, single.low, single.high) == (1.0, None, None)


def test_samples_must_pair_up() -> None:
    with pytest.raises(PlatformFault, match="same samples"):
        paired_t_test(np.zeros(3), np.zeros(4))
    with pytest.raises(PlatformFault, match="same samples"):
        paired_t_test(np.zeros(0), np.zeros(0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p: list[float]) -> None:
    """At every level the correction rejects what stepping down by hand rejects."""
    corrected = holm_correction(p)
    for level in (0.01, 0.05, 0.3):
        rejected: set[int] = set()
        for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[index] * (len(p) - step) > level:
                break
            rejected.add(index)
        assert {i for i, q in enumerate(corrected) if q <= level} == rejected
    assert holm_correction([]) == []
    assert all(q >= original for q, original in zip(corrected, p, strict=True))


def test_a_permutation_test_agrees_with_all_assignments() -> None:
    rng = np.random.default_rng(0)
    reference, model = rng.integers(0, 2, (2, 12)).astype(float)
    model[:4] = 1.0
    differences = model - reference
    signs = np.array(list(itertools.product([1, -1], repeat=12)))
    expected = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    assert permutation_test(reference, model, draws=40_000) == pytest.approx(expected, abs=0.01)
    assert permutation_test(reference, reference) == 1.0
    assert permutation_test(np.zeros(60), np.ones(60), draws=999) == 0.001

"""Metrics count ties by expectation, checked by brute force, and ignore the candidates' order."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from cluster.errors import PlatformFault
from cprec.evaluation.metrics import (
    HR_CUTOFFS,
    NDCG_CUTOFFS,
    Ranks,
    average_metrics,
    compute_metrics,
    compute_ranks,
    discounted_gains,
    hits,
    length_correlations,
)

levels = st.integers(-2, 2).map(float)
scores_and_targets = st.tuples(st.integers(1, 6), st.integers(2, 20)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.float64, shape, elements=levels),
        arrays.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)),
    )
)


def rank_one(scores: list[float], target: int) -> Ranks:
    return compute_ranks(np.array([scores]), np.array([target]))


@given(st.lists(levels, min_size=2, max_size=6), st.data())
def test_ties_count_by_their_expectation_over_all_fair_draws(
    scores: list[float], data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    draws = [
        1 + sorted(range(len(scores)), key=lambda i: (-scores[i], order[i])).index(target)
        for order in itertools.permutations(range(len(scores)))
    ]
    ranks = rank_one(scores, target)
    assert ranks.expected_rank[0] == pytest.approx(np.mean(draws))
    for k in (1, 2, 3, 5):
        assert hits(ranks, k)[0] == pytest.approx(np.mean([position <= k for position in draws]))
        assert discounted_gains(ranks, k)[0] == pytest.approx(
            np.mean([(position <= k) / np.log2(1 + position) for position in draws])
        )


@given(scores_and_targets, st.randoms(use_true_random=False))
def test_the_order_of_candidates_and_the_scale_of_scores_do_not_matter(
    case: tuple[np.ndarray, np.ndarray], random: Any
) -> None:
    scores, target = case
    order = np.array(sorted(range(scores.shape[1]), key=lambda _: random.random()))
    reordered = compute_ranks(np.exp(scores[:, order]), np.argsort(order)[target])
    ranks = compute_ranks(scores, target)
    assert (reordered.better_counts == ranks.better_counts).all()
    assert (reordered.tied_counts == ranks.tied_counts).all()


@given(scores_and_targets)
def test_metrics_are_between_0_and_1_and_grow_with_k(case: tuple[np.ndarray, np.ndarray]) -> None:
    ranks = compute_ranks(*case)
    for measure in (hits, discounted_gains):
        values = np.array([measure(ranks, k) for k in range(1, 21)])
        assert (values >= 0).all()
        assert (values <= 1 + 1e-12).all()
        assert (np.diff(values, axis=0) >= -1e-12).all()
    assert np.allclose(discounted_gains(ranks, 1), hits(ranks, 1))


@given(st.integers(1, 50), st.integers(2, 20))
def test_constant_scores_give_the_hr1_of_chance(n: int, candidates: int) -> None:
    ranks = compute_ranks(np.zeros((n, candidates)), np.arange(n) % candidates)
    assert hits(ranks, 1).mean() == pytest.approx(1 / candidates, abs=1e-15)


def test_a_higher_score_of_the_true_item_never_hurts() -> None:
    rng = np.random.default_rng(0)
    scores, target = rng.normal(size=(200, 20)), rng.integers(0, 20, 200)
    better = scores.copy()
    better[np.arange(200), target] += rng.exponential(size=200)
    for k in HR_CUTOFFS:
        assert (
            hits(compute_ranks(better, target), k) >= hits(compute_ranks(scores, target), k)
        ).all()
    for k in NDCG_CUTOFFS:
        assert (
            discounted_gains(compute_ranks(better, target), k)
            >= discounted_gains(compute_ranks(scores, target), k)
        ).all()


def test_nan_is_refused() -> None:
    with pytest.raises(PlatformFault, match="1 of 2 samples"):
        compute_ranks(np.array([[0.0, 1.0], [np.nan, 1.0]]), np.array([1, 1]))


def test_the_contents_of_metrics_json() -> None:
    scores = np.tile(np.arange(20.0), (4, 1))
    metrics = compute_metrics(
        "base", "Books", compute_ranks(scores, np.array([19, 18, 0, 19])), np.array([3, 4, 5, 8])
    )
    assert metrics["hr"] == {"1": 0.5, "3": 0.75, "5": 0.75}
    assert metrics["ndcg"]["3"] == pytest.approx((2 + 1 / np.log2(3)) / 4)
    assert {name: part["n"] for name, part in metrics["slices"].items()} == {
        "sparse": 2,
        "medium": 2,
        "dense": 0,
    }
    assert metrics["slices"]["sparse"]["hr"]["1"] == 0.5
    assert metrics["slices"]["dense"]["hr"]["1"] is None
    assert (metrics["mode"], metrics["hr1_of_valid"], metrics["valid_ratio"]) == (
        "score",
        None,
        {"exact": None, "llara": None},
    )


@given(st.integers(0, 1 << 16))
def test_length_correlations_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (3, 20)).astype(float)
    lengths = rng.integers(1, 90, (3, 20))
    scores[2] = 1.0
    found = length_correlations(scores, lengths)
    for row in range(2):
        assert found[row] == pytest.approx(stats.spearmanr(scores[row], lengths[row]).statistic)
    assert np.isnan(found[2])
    assert length_correlations(-lengths.astype(float), lengths) == pytest.approx(-1.0)


def test_a_seed_without_a_valid_answer_leaves_the_mean_to_the_others() -> None:
    seeds: list[Any] = [{"hr1_of_valid": value, "n": 3} for value in (0.5, None, 0.7)]
    for order in itertools.permutations(seeds):
        means: Any = average_metrics(order)
        assert means == {"hr1_of_valid": pytest.approx(0.6), "n": 3}
    means = average_metrics(seeds[1:2] * 2)
    assert means == {"hr1_of_valid": None, "n": 3}

"""A fine-tuning as a plan: every sample once an epoch, the rate of the paper, the curriculum counted over the whole run."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.config.recipe import FinetuneSettings, SearchSettings
from cprec.downstream.domain import select_whole_users
from cprec.downstream.hybrid import HybridPromptEncoder, IndexedPromptEncoder, TextPromptEncoder
from cprec.downstream.llara import (
    PromptEncoders,
    build_plan,
    is_hybrid_batch,
    iter_training_steps,
    rows_at,
    samples_per_epoch,
)
from cprec.downstream.lr_search import best_lr, trial_lrs
from cprec.downstream.trial import TrialResult
from cprec.encode.tokens import TitleEncoder
from cprec.model import tiny
from cprec.schedule.plan import global_batches

TOKENIZER = tiny.train_tokenizer(["red oak lamp", "steel mug"] * 5, 400)
ITEMS = {index: (f"item {index}", index) for index in range(12)}


def table(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "sample_id": pa.array(rng.integers(0, 1 << 62, rows)),
            "user_id": [f"u{row % 7}" for row in range(rows)],
            "history": [rng.integers(0, 12, 3).tolist() for _ in range(rows)],
            "candidates": [rng.permutation(12)[:5].tolist() for _ in range(rows)],
            "target": pa.array(rng.integers(0, 5, rows).astype(np.int8)),
        }
    )


def encoders() -> PromptEncoders:
    return PromptEncoders(
        IndexedPromptEncoder(TextPromptEncoder(TitleEncoder(TOKENIZER, 512)), ITEMS),
        IndexedPromptEncoder(HybridPromptEncoder(TOKENIZER, 512, len(TOKENIZER)), ITEMS),
    )


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 20), st.integers(0, 5))
def test_every_row_once_an_epoch_in_an_order_of_its_own(
    rows: int, epochs: int, batch: int, seed: int
) -> None:
    plan = build_plan("downstream/A", 0, rows, 1e-3, FinetuneSettings(epochs=epochs), seed)
    assert (plan.total_samples, samples_per_epoch(plan)) == (rows * epochs, rows)
    orders = []
    for era in plan.eras:
        orders.append(
            [
                int(r)
                for start, stop in global_batches(era.start, era.stop, batch)
                for r in rows_at(plan, start, stop)
            ]
        )
    *orders, last = orders
    assert last == []
    assert all(sorted(order) == list(range(rows)) for order in orders)
    if rows > 20:
        assert len({tuple(order) for order in orders}) == epochs


def test_the_rate_rises_for_a_twentieth_and_falls_along_a_cosine() -> None:
    plan = build_plan("downstream/A", 0, 200, 1e-3, FinetuneSettings(epochs=5), 0)
    assert plan.wsa.lr(0) == pytest.approx(1e-5)
    assert plan.wsa.lr(50) == pytest.approx(1e-3)
    assert plan.wsa.lr(525) == pytest.approx((1e-3 + 1e-5) / 2)
    assert plan.wsa.lr(1000) == pytest.approx(1e-5)


def test_the_curriculum_rises_linearly_over_the_whole_run() -> None:
    plan = build_plan("downstream/A", 0, 40_000, 1e-3, FinetuneSettings(epochs=1), 0)
    drawn = np.array([is_hybrid_batch(plan, start) for start in range(0, 40_000, 4)])
    tenths = drawn.reshape(10, -1).mean(axis=1)
    assert np.abs(tenths - np.arange(0.05, 1, 0.1)).max() < 0.05
    assert not is_hybrid_batch(plan, 0)


def test_workers_share_each_batch_and_agree_on_its_kind() -> None:
    samples, settings = table(50), FinetuneSettings(epochs=3, global_batch=8)
    plan = build_plan("downstream/A", 0, 50, 1e-3, settings, 0)
    whole = list(iter_training_steps(plan, samples, encoders(), 8, 0, 0, 1))
    halves = [
        list(iter_training_steps(plan, samples, encoders(), 8, 0, rank, 2)) for rank in (0, 1)
    ]
    kinds = set()
    for all_of_it, *parts in zip(whole, *halves, strict=True):
        assert sorted(i for part in parts for i in part.share.ids.tolist()) == sorted(
            all_of_it.share.ids.tolist()
        )
        assert all(part.share.batch == all_of_it.share.batch for part in parts)
        hybrid = {
            bool((sample.ids >= len(TOKENIZER)).any())
            for part in parts
            for sample in part.share.samples
        }
        assert hybrid == {is_hybrid_batch(plan, all_of_it.share.batch.start)}
        kinds |= hybrid
    assert kinds == {True, False}


def test_work_goes_on_from_any_batch() -> None:
    samples = table(50)
    plan = build_plan("downstream/A", 0, 50, 1e-3, FinetuneSettings(epochs=2), 0)
    whole = list(iter_training_steps(plan, samples, encoders(), 8, 0, 0, 1))
    rest = list(iter_training_steps(plan, samples, encoders(), 8, 50, 0, 1))
    assert [w.worker_batch.global_batch for w in whole[7:]] == [
        w.worker_batch.global_batch for w in rest
    ]
    assert [w.lr for w in whole[7:]] == [w.lr for w in rest]


@given(st.integers(1, 60))
def test_a_cap_keeps_whole_users(most: int) -> None:
    samples = table(50)
    kept = select_whole_users(samples, most)
    of_all = samples["user_id"].to_pylist()
    assert len(kept) <= max(most, max(map(of_all.count, of_all)))
    for user in set(kept["user_id"].to_pylist()):
        assert kept["user_id"].to_pylist().count(user) == of_all.count(user)
    larger = set(select_whole_users(samples, most + 10)["user_id"].to_pylist())
    assert set(kept["user_id"].to_pylist()) <= larger


def test_drawn_rates_lie_between_the_ends_and_are_the_same_again() -> None:
    settings = SearchSettings(lrs=(1e-5, 1e-2), draws=200)
    drawn = trial_lrs(settings, 0)
    assert drawn == trial_lrs(settings, 0) != trial_lrs(settings, 1)
    assert all(1e-5 <= rate <= 1e-2 for rate in drawn)
    assert 0.4 < np.mean(np.array(drawn) < 10**-3.5) < 0.6
    assert trial_lrs(SearchSettings(), 0) == (6e-4, 3e-4, 1e-4)


def test_the_mean_over_seeds_decides() -> None:
    ended = [
        TrialResult(rate, seed, hr1, 1, "", (hr1,))
        for rate, seed, hr1 in [(1e-3, 0, 0.9), (1e-3, 1, 0.1), (1e-4, 0, 0.6), (1e-4, 1, 0.6)]
    ]
    assert best_lr(ended) == 1e-4

"""A fine-tuning as a plan: samples once per epoch, LLaRA's lr, a curriculum over the whole run."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.config.sections.finetuning import FinetuneSettings, SearchSettings
from cprec.downstream.domain import select_whole_users
from cprec.downstream.hybrid import (
    HybridPromptEncoder,
    IndexedPromptEncoder,
    PromptEncoders,
    TextPromptEncoder,
)
from cprec.downstream.llara import (
    build_plan,
    is_hybrid_batch,
    iter_training_steps,
    rows_at,
    samples_per_epoch,
)
from cprec.downstream.lr_search import best_lr, trial_lrs
from cprec.downstream.trial_records import TrialResult
from cprec.encode.prompt import TABLE1
from cprec.encode.tokens import TitleEncoder
from cprec.model import tiny
from cprec.schedule.plan import global_batches

TOKENIZER = tiny.train_tokenizer(["red oak lamp", "steel mug"] * 5, 400, TABLE1)
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
        IndexedPromptEncoder(TextPromptEncoder(TitleEncoder(TOKENIZER, 512, TABLE1)), ITEMS),
        IndexedPromptEncoder(HybridPromptEncoder(TOKENIZER, 512, len(TOKENIZER), TABLE1), ITEMS),
    )


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 20), st.integers(0, 5))
def test_every_epoch_has_every_row_once_in_an_order_of_its_own(
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


def test_the_lr_rises_for_a_twentieth_and_falls_along_a_cosine() -> None:
    plan = build_plan("downstream/A", 0, 200, 1e-3, FinetuneSettings(epochs=5), 0)
    assert plan.wsa.lr(0) == pytest.approx(1e-5)
    assert plan.wsa.lr(50) == pytest.approx(1e-3)
    assert plan.wsa.lr(525) == pytest.approx((1e-3 + 1e-5) / 2)
    assert plan.wsa.lr(1000) == pytest.approx(1e-5)


def test_the_curriculum_rises_linearly_over_the_whole_run() -> None:
    plan = build_plan("downstream/A", 0, 40_000, 1e-3, FinetuneSettings(epochs=1), 0)
    is_hybrid = np.array([is_hybrid_batch(plan, start, "all") for start in range(0, 40_000, 4)])
    tenths = is_hybrid.reshape(10, -1).mean(axis=1)
    assert np.abs(tenths - np.arange(0.05, 1, 0.1)).max() < 0.05
    assert not is_hybrid_batch(plan, 0, "all")


def test_the_curriculum_may_end_with_the_first_epoch() -> None:
    plan = build_plan("downstream/A", 0, 20_000, 1e-3, FinetuneSettings(epochs=3), 0)
    first, later = (
        np.array([is_hybrid_batch(plan, start, "epoch") for start in range(*bounds, 4)])
        for bounds in ((0, 20_000), (20_000, 60_000))
    )
    assert np.abs(first.reshape(10, -1).mean(axis=1) - np.arange(0.05, 1, 0.1)).max() < 0.06
    assert later.all()
    over_all = np.array([is_hybrid_batch(plan, start, "all") for start in range(0, 60_000, 4)])
    assert abs(over_all.mean() - 0.5) < 0.02


def test_workers_divide_each_batch_and_agree_on_its_kind() -> None:
    samples = table(50)
    settings = FinetuneSettings(epochs=3, global_batch=8)
    plan = build_plan("downstream/A", 0, 50, 1e-3, settings, 0)
    whole = list(iter_training_steps(plan, samples, encoders(), 8, "all", 0, 0, 1))
    halves = [
        list(iter_training_steps(plan, samples, encoders(), 8, "all", 0, rank, 2))
        for rank in (0, 1)
    ]
    kinds = set()
    for whole_step, *steps in zip(whole, *halves, strict=True):
        whole_batch = whole_step.worker_batch
        parts = [step.worker_batch for step in steps]
        assert sorted(i for part in parts for i in part.sample_ids.tolist()) == sorted(
            whole_batch.sample_ids.tolist()
        )
        assert all(part.global_batch == whole_batch.global_batch for part in parts)
        hybrid = {
            bool((sample.ids >= len(TOKENIZER)).any()) for part in parts for sample in part.samples
        }
        assert hybrid == {is_hybrid_batch(plan, whole_batch.global_batch.start, "all")}
        kinds |= hybrid
    assert kinds == {True, False}


def test_steps_continue_from_any_batch() -> None:
    samples = table(50)
    plan = build_plan("downstream/A", 0, 50, 1e-3, FinetuneSettings(epochs=2), 0)
    whole = list(iter_training_steps(plan, samples, encoders(), 8, "all", 0, 0, 1))
    rest = list(iter_training_steps(plan, samples, encoders(), 8, "all", 50, 0, 1))
    assert [step.worker_batch.global_batch for step in whole[7:]] == [
        step.worker_batch.global_batch for step in rest
    ]
    assert [step.lr for step in whole[7:]] == [step.lr for step in rest]


@given(st.integers(1, 60))
def test_a_cap_selects_whole_users(max_samples: int) -> None:
    samples = table(50)
    all_users = samples["user_id"].to_pylist()
    users = select_whole_users(samples, max_samples)["user_id"].to_pylist()
    assert len(users) <= max(max_samples, max(map(all_users.count, all_users)))
    for user in set(users):
        assert users.count(user) == all_users.count(user)
    more_users = select_whole_users(samples, max_samples + 10)["user_id"].to_pylist()
    assert set(users) <= set(more_users)


def test_drawn_lrs_are_between_the_ends_and_depend_on_the_seed_alone() -> None:
    settings = SearchSettings(lrs=(1e-5, 1e-2), draws=200)
    drawn = trial_lrs(settings, 0)
    assert drawn == trial_lrs(settings, 0) != trial_lrs(settings, 1)
    assert all(1e-5 <= lr <= 1e-2 for lr in drawn)
    assert 0.4 < np.mean(np.array(drawn) < 10**-3.5) < 0.6
    assert trial_lrs(SearchSettings(), 0) == (6e-4, 3e-4, 1e-4)


def test_the_best_lr_has_the_best_mean_over_seeds() -> None:
    results = [
        TrialResult(lr, seed, hr1, 1, "", (hr1,))
        for lr, seed, hr1 in [(1e-3, 0, 0.9), (1e-3, 1, 0.1), (1e-4, 0, 0.6), (1e-4, 1, 0.6)]
    ]
    assert best_lr(results) == 1e-4

"""Ranks over a whole catalogue, against ranks that are counted one by one."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.errors import PlatformFault
from cprec.baselines.training import BASELINE_NAMES, build_network, iter_catalogue_scores
from cprec.config.sections.finetuning import BaselineSettings
from cprec.evaluation import catalogue_predictions as tested
from cprec.evaluation.predictions import from_bytes, to_bytes

ITEMS = np.arange(50, 80)


def samples(histories: list[list[int]], targets: list[int]) -> pa.Table:
    return pa.table(
        {
            "sample_id": pa.array(range(len(targets)), pa.int64()),
            "user_id": [f"u{i}" for i in range(len(targets))],
            "history": pa.array(histories, pa.list_(pa.int64())),
            "candidates": [[50, target] for target in targets],
            "target": pa.array([1] * len(targets), pa.int8()),
        }
    )


def drawn(n: int, seed: int) -> tuple[pa.Table, NDArray[np.float64]]:
    """Samples, and scores of all items with many ties."""
    rng = np.random.default_rng(seed)
    histories = [rng.choice(ITEMS, 3, replace=False).tolist() for _ in range(n)]
    return samples(histories, rng.choice(ITEMS, n).tolist()), rng.integers(0, 6, (n, 30)) / 5


@given(st.integers(1, 7), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_ranks_of_all_scores_are_exact(n: int, rows: int, exclude: bool, seed: int) -> None:
    table, scores = drawn(n, seed)
    blocks = [scores[start : start + rows] for start in range(0, n, rows)]
    found = tested.from_all_scores(table, blocks, ITEMS, 4, exclude)
    for row in range(n):
        history = table["history"][row].as_py()
        own = {
            item: -np.inf if exclude and item in history else scores[row, item - 50]
            for item in ITEMS.tolist()
        }
        target = own[tested.true_items(table)[row]]
        assert found["better"][row].as_py() == sum(value > target for value in own.values())
        assert found["tied"][row].as_py() == sum(value == target for value in own.values())
        ordered = sorted(own, key=lambda item: (-own[item], item))[:4]
        assert found["ranking"][row].as_py() == ordered
        assert found["scores"][row].as_py() == [own[item] for item in ordered]


def test_constant_scores_give_chance() -> None:
    table, _ = drawn(200, 1)
    found = tested.from_all_scores(table, [np.ones((200, 30))], ITEMS, 5, False)
    metrics = tested.to_metrics(found, "m", "A")
    assert metrics["hr"]["1"] == pytest.approx(1 / 30)
    assert metrics["hr"]["10"] == metrics["recall"]["20"] / 2 == pytest.approx(10 / 30)
    retrieved = np.tile(ITEMS[:10], (200, 1))
    ranked = retrieved[:, :5]
    metrics = tested.to_metrics(
        tested.from_retrieved(table, retrieved, ranked, np.ones((200, 5)), False), "m", "A"
    )
    in_ranked = np.isin(tested.true_items(table), ranked[0]).mean()
    assert 0 < in_ranked < 1
    assert metrics["hr"]["1"] == pytest.approx(in_ranked / 5)
    assert metrics["hr"]["5"] == metrics["hr"]["10"] == pytest.approx(in_ranked)


def test_what_was_not_retrieved_is_a_miss_and_recall_never_falls() -> None:
    table, _ = drawn(60, 2)
    rng = np.random.default_rng(3)
    retrieved = np.array([rng.permutation(ITEMS)[:12] for _ in range(60)])
    ranked = np.sort(retrieved[:, :6], axis=1)
    found = tested.from_retrieved(table, retrieved, ranked, rng.standard_normal((60, 6)), False)
    found = from_bytes(to_bytes(found))
    targets = tested.true_items(table)[:, None]
    recalls = [tested.recall(found, k).mean() for k in range(1, 31)]
    assert recalls == sorted(recalls)
    for k in (1, 5, 12, 30):
        np.testing.assert_array_equal(
            tested.recall(found, k), (retrieved[:, :k] == targets).any(axis=1)
        )
    metrics = tested.to_metrics(found, "m", "A")
    assert metrics["mode"] == "catalogue"
    in_ranked = (ranked == targets).any(axis=1).mean()
    assert metrics["hr"]["10"] == in_ranked
    assert in_ranked < metrics["recall"]["20"]
    assert all(
        (found["better"][row].as_py() is None) == (targets[row] not in ranked[row])
        for row in range(60)
    )


@given(st.integers(1, 7), st.booleans(), st.integers(0, 99))
def test_a_whole_catalogue_that_was_retrieved_is_ranked_as_all_scores_are(
    n: int, exclude: bool, seed: int
) -> None:
    table, scores = drawn(n, seed)
    ranked = np.tile(ITEMS, (n, 1))
    expected = tested.from_all_scores(table, [scores], ITEMS, len(ITEMS), exclude)
    found = tested.from_retrieved(table, ranked, ranked, scores, exclude)
    for column in ("better", "tied", "ranking", "scores"):
        assert found[column].to_pylist() == expected[column].to_pylist()


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_a_baseline_over_all_items_equals_counting(name: str) -> None:
    torch.manual_seed(0)
    text = np.random.default_rng(0).standard_normal((len(ITEMS), 6)).astype(np.float32)
    network = build_network(name, len(ITEMS), 4, BaselineSettings(size=8), text).eval()
    table, _ = drawn(25, 4)
    histories = [[item - 49 for item in row] for row in table["history"].to_pylist()]
    blocks = list(iter_catalogue_scores(network, histories, 7))
    assert [len(block) for block in blocks] == [7, 7, 7, 4]
    found = tested.from_all_scores(table, blocks, ITEMS, 5, True)
    hits = []
    with torch.inference_mode():
        for history, target in zip(histories, tested.true_items(table), strict=True):
            row = torch.tensor([[0] * (4 - len(history)) + history])
            state = network.encode_histories(row)
            scores = network.score_items(state, torch.arange(1, 31)[None])[0]
            scores[torch.tensor(history) - 1] = -torch.inf
            hits.append(float((scores > scores[target - 50]).sum() < 5))
    assert 0 < np.mean(hits) < 1
    assert tested.to_metrics(found, name, "A")["hr"]["5"] == pytest.approx(np.mean(hits))


def test_nan_is_a_fault() -> None:
    table, scores = drawn(2, 0)
    scores[1, 3] = np.nan
    with pytest.raises(PlatformFault, match="NaN"):
        tested.from_all_scores(table, [scores], ITEMS, 3, True)

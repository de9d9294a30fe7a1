"""Rows of a comparison: seeds of one model count as their mean, p is corrected for all domains."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from cluster.errors import CorpusError
from corpus.build import build
from cprec.config.recipe import Recipe
from cprec.evaluation import predictions
from cprec.evaluation.comparison import (
    Comparison,
    ComparisonRow,
    add_holm_correction,
    add_significance,
)
from cprec.evaluation.metrics import average_metrics, hits
from cprec.tracking.registry import Registry
from cprec.workflows.evaluate import _read_predictions
from cprec.workflows.evaluation.plan import plan_evaluation
from tests.unit.corpus.worlds import settings, write_root


def table(right: list[int]) -> pa.Table:
    """Predictions that rank the true item first where `right` is 1, and last where it is 0."""
    samples = pa.table(
        {
            "sample_id": pa.array(range(len(right)), pa.int64()),
            "user_id": [f"u{i}" for i in range(len(right))],
            "history": [[1, 2, 3]] * len(right),
            "candidates": [[5, 6, 7]] * len(right),
            "target": pa.array([0] * len(right), pa.int8()),
        }
    )
    return predictions.from_scores(
        samples,
        np.array([[1.0, 0.5, 0.2] if hit else [0.0, 0.5, 0.2] for hit in right]),
        ["", "", "", "", "", "a mug", "an oak lamp", "the blue lamp"],
    )


@pytest.mark.parametrize(
    "damaged", [b'{"inputs": ', b"[]", b"7", b"{}", b'{"inputs": 7}', b"\xff", b"[" * 100_000]
)
def test_damaged_predictions_are_made_again(tmp_path: Path, damaged: bytes) -> None:
    inputs = {"base": "b", "corpus_fingerprint": "f"}
    stored = table([1, 0])
    (tmp_path / "predictions.parquet").write_bytes(predictions.to_bytes(stored))
    metrics = tmp_path / "metrics.json"
    for content, is_read in (
        ({"inputs": inputs}, True),
        ({"inputs": {"base": "b"}}, True),  # of an earlier release
        ({"inputs": {**inputs, "corpus_fingerprint": "g"}}, False),
        ({"inputs": {**inputs, "base": "c"}}, False),
    ):
        metrics.write_text(json.dumps(content))
        assert (_read_predictions(str(tmp_path), inputs, stored) == stored) is is_read
    metrics.write_text(json.dumps({"inputs": inputs}))
    assert _read_predictions(str(tmp_path), inputs, stored.slice(1)) is None
    metrics.write_bytes(damaged)
    assert _read_predictions(str(tmp_path), inputs, stored) is None
    metrics.write_text(json.dumps({"inputs": inputs}))
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1xx")
    assert _read_predictions(str(tmp_path), inputs, stored) is None


METRICS = predictions.to_metrics(table([1]), "m", "A", "score")


def hits_of(tables: list[pa.Table]) -> NDArray[np.float64]:
    """HR@1 of each seed and sample."""
    return np.stack([hits(predictions.to_ranks(table), 1) for table in tables])


def test_seeds_are_averaged_sample_by_sample_and_tested_over_seeds() -> None:
    reference = hits_of([table([0, 0, 1, 0]), table([0, 0, 0, 0])])
    model = hits_of([table([1, 1, 1, 0]), table([1, 0, 1, 0])])
    row = add_significance(ComparisonRow("cprec", "2 seeds", METRICS, None), reference, model)
    assert row.against
    assert row.against.difference == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert row.against.n == 4
    assert row.over_seeds
    assert row.over_seeds.n == 2
    assert row.over_seeds.difference == pytest.approx(0.5)
    alone = add_significance(ComparisonRow("base", "base", METRICS, None), reference[:1], model[:1])
    assert alone.over_seeds is None
    one_reference = add_significance(
        ComparisonRow("cprec", "2 seeds", METRICS, None), reference[:1], model
    )
    assert one_reference.over_seeds
    assert one_reference.over_seeds.difference == pytest.approx((0.75 + 0.5) / 2 - 0.25)


def test_metrics_of_seeds_are_their_mean() -> None:
    results = [
        predictions.to_metrics(table(right), "m", "A", "score")
        for right in ([1, 1, 0, 0], [1, 0, 0, 0])
    ]
    mean = average_metrics(results)
    assert mean["hr"]["1"] == pytest.approx(0.375)
    # -1 where the scores fall with the length; 0.5 where only the last two do.
    assert mean["length_correlation"] == pytest.approx((3 * -1 + 5 * 0.5) / 8)
    assert mean["slices"]["sparse"]["hr"]["1"] == pytest.approx(0.375)
    assert (mean["n"], mean["mode"], mean["slices"]["dense"]["hr"]["1"]) == (4, "score", None)
    assert average_metrics(results[:1]) == results[0]


def test_several_domains_are_corrected_for() -> None:
    rows = [
        ComparisonRow("base", "base", METRICS, None),
        add_significance(
            ComparisonRow("cprec", "version-2", METRICS, None),
            hits_of([table([0] * 12)]),
            hits_of([table([1] * 6 + [0] * 6)]),
        ),
    ]
    p = rows[1].against.p if rows[1].against else 1.0

    def kept(
        domain: str,
        p: float,
        reference: str = "base",
        model: str = "version-2",
        base: str = "base",
        **changes: str,
    ) -> dict[str, Any]:
        return {
            "domain": domain,
            "split": "test",
            "mode": "score",
            "days": "",
            "rows": [
                {"name": reference, "model": base, "against": None},
                {"name": "cprec", "model": model, "against": {"p": p}},
                {"name": "llara", "model": "2 seeds", "against": {"p": 0.0}},
            ],
            **changes,
        }

    now = Comparison("base_cprec", 0.0, "Games", "test", "score", 0.1, "HR@1", rows)

    def corrected(*others: dict[str, Any]) -> float | None:
        first, second = add_holm_correction(now, others).rows
        assert first.holm_p is None
        return second.holm_p

    assert corrected() == p
    assert corrected(kept("Books", 0.0), kept("Books", 0.5)) == pytest.approx(2 * p)
    assert corrected(kept("Games", 0.0)) == p
    assert corrected(kept("Books", 0.0, mode="generate")) == p
    assert corrected(kept("Books", 0.0, days="2026-11-27")) == p
    assert corrected(kept("Books", 0.0, reference="llara")) == p
    assert corrected(kept("Books", 0.0, split="validation")) == p
    assert corrected(kept("Books", 0.0, model="version-1")) == p
    assert corrected(kept("Books", 0.0, base="version-1")) == p


def test_a_baseline_of_a_domain_without_training_samples_is_refused_in_the_plan(
    tmp_path: Path,
) -> None:
    """All users have 5 purchases: 3 are the shortest history, the last two are held out."""
    rows = [(f"u{u}", f"A{(u + n) % 30:02d}", n) for u in range(30) for n in range(5)]
    data = settings(write_root(tmp_path / "root", {"A": rows}), domains=("A",), held_out=())
    corpus = build(data, 0, str(tmp_path / "corpus"), print)
    recipe = Recipe.model_validate(
        {"corpus": corpus.uri, "storage": str(tmp_path / "runs"), "evaluate": {"domain": "A"}}
    )
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", "cprec", "cprec")
    assert plan_evaluation(recipe, registry, ["base"], print).models
    for name in ("popularity", "sasrec", "llara-untuned"):
        with pytest.raises(CorpusError, match="domain A has no train samples"):
            plan_evaluation(recipe, registry, ["base", name], print)

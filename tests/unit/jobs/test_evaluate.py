"""What jobs/evaluate.py prints: whole on a screen of 80 columns, whatever was measured."""

import io
import re
import runpy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cprec.evaluate.metrics import compute_metrics, compute_ranks
from cprec.evaluate.significance import paired_t_test
from cprec.workflows.evaluate import Comparison, ComparisonRow
from tests.integration import jobs


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The job's own function."""
    monkeypatch.syspath_prepend(str(jobs.ROOT / "jobs"))
    return runpy.run_path(str(jobs.ROOT / "jobs" / "evaluate.py"))["comparison_table"]


def shown(table: Any, perplexity: float | None) -> str:
    """Two models on many users, the second better; of several seeds."""
    rng = np.random.default_rng(0)
    rows = []
    for name, model, lead in (("base", "base", 0.0), ("candidate", "version-12", 1.0)):
        scores = rng.normal(size=(50_546, 20))
        scores[:, 0] += lead
        found = compute_ranks(scores, np.zeros(len(scores), dtype=int))
        rows.append(
            ComparisonRow(
                name,
                model,
                compute_metrics(model, "Video_Games", found, np.full(len(scores), 10)),
                None,
                perplexity=perplexity,
            )
        )
    against = paired_t_test(rng.random(500), rng.random(500) + 0.25)
    rows[1] = replace(
        rows[1], against=against, over_seeds=paired_t_test(np.zeros(3), np.array([0.1, 0.11, 0.12]))
    )
    page = io.StringIO()
    Console(file=page, width=80).print(table(Comparison("Video_Games", "test", rows), 0.05))
    return page.getvalue()


def test_a_comparison_fits_on_a_screen(table: Any) -> None:
    page = shown(table, None)
    assert "…" not in page
    for word in (
        "50,546",
        "NDCG@5",
        "difference",
        "version-12",
        "paired t-test over users",
        "±0.0",
    ):
        assert word in page, page
    assert re.search(r"\+0\.\d{3} ±0\.\d{3}\s+\S*e-\d+\s*$", page, re.MULTILINE), page
    assert "perplexity" not in page


def test_the_text_has_a_line_of_its_own(table: Any) -> None:
    assert "perplexity of evaluate.text: base 113.25, candidate 113.25" in shown(table, 113.25)

"""Tables that jobs print: whole on a screen of 80 columns, whatever was measured."""

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cprec.downstream.trial_records import TrialResult
from cprec.evaluation.comparison import Comparison, ComparisonRow, collect_modes
from cprec.evaluation.metrics import compute_metrics, compute_ranks
from cprec.evaluation.significance import paired_t_test
from cprec.tracking.console_tables import comparison_table, modes_table, trials_table


def render(table: Table) -> str:
    page = io.StringIO()
    Console(file=page, width=80).print(table)
    return page.getvalue()


def comparison(perplexity: float | None) -> Comparison:
    """Two models on many users, the second better; of several seeds."""
    rng = np.random.default_rng(0)
    rows = []
    for name, model, lead in (("base", "base", 0.0), ("candidate", "version-12", 1.0)):
        scores = rng.normal(size=(50_546, 20))
        scores[:, 0] += lead
        ranks = compute_ranks(scores, np.zeros(len(scores), dtype=int))
        metrics = compute_metrics(model, "Video_Games", ranks, np.full(len(scores), 10))
        rows.append(ComparisonRow(name, model, metrics, None, perplexity=perplexity))
    against = paired_t_test(rng.random(500), rng.random(500) + 0.25)
    over_seeds = paired_t_test(np.zeros(3), np.array([0.1, 0.11, 0.12]))
    rows[1] = replace(rows[1], against=against, over_seeds=over_seeds)
    return Comparison("base_candidate", 1.0, "Video_Games", "test", "score", 0.05, "HR@1", rows)


def test_a_comparison_fits_on_a_screen() -> None:
    page = render(comparison_table(comparison(None), 0.05))
    assert "…" not in page
    for text in (
        "50,546",
        "NDCG@5",
        "difference",
        "version-12",
        "paired t-test over users",
        "±0.0",
    ):
        assert text in page, page
    assert re.search(r"\+0\.\d{3} ±0\.\d{3}\s+\S*e-\d+\s*$", page, re.MULTILINE), page
    assert "perplexity" not in page


def test_the_text_has_a_line_of_its_own() -> None:
    page = render(comparison_table(comparison(113.25), 0.05))
    assert "perplexity of evaluate.text: base 113.25, candidate 113.25" in page


def test_how_much_a_model_ranks_by_length_has_a_line_of_its_own() -> None:
    compared = comparison(None)
    assert "title length" not in render(comparison_table(compared, 0.05))
    rows = [
        replace(row, metrics={**row.metrics, "length_correlation": value})
        for row, value in zip(compared.rows, (-0.9, 0.012), strict=True)
    ]
    page = render(comparison_table(replace(compared, rows=rows), 0.05))
    assert "correlation of score and title length: base -0.90, candidate +0.01" in page


def test_every_mode_that_was_run_is_shown_with_valid_ratio_and_slices() -> None:
    now = comparison(None)
    base, candidate = (row.metrics for row in now.rows)
    generated = {**candidate, "mode": "generate", "valid_ratio": {"exact": 0.875, "llara": 0.75}}

    def kept(**changes: Any) -> dict[str, Any]:
        row = {"name": "candidate", "model": "version-12", "metrics": generated}
        same = {"domain": "Video_Games", "split": "test", "days": "", "mode": "generate"}
        return {**same, "rows": [{**row, **changes.pop("row", {})}], **changes}

    older = {"metrics": {**generated, "valid_ratio": {"exact": 0.5, "llara": 0.5}}}
    collected = collect_modes(now, [kept(row=older), kept()])
    assert collected == [("base", base), ("candidate", candidate), ("candidate", generated)]
    for other in (
        kept(domain="Toys"),
        kept(split="validation"),
        kept(days="2026-11-27"),
        kept(row={"model": "version-11"}),
        kept(row={"metrics": {}}),  # of an earlier release
    ):
        assert collect_modes(now, [other]) == collected[:2]
    page = render(modes_table(collected))
    assert "…" not in page
    rows = [line.split() for line in page.splitlines() if re.match(r"\s*(base|candidate) ", line)]
    hr1, dense = f"{candidate['hr']['1']:.4f}", f"{candidate['slices']['dense']['hr']['1']:.4f}"
    assert rows[1] == ["candidate", "score", "50,546", hr1, dense]  # all histories have 10 items
    assert rows[2] == ["candidate", "generate", "50,546", hr1, "0.8750", "0.7500", dense]
    assert "sparse: 3 to 4; medium: 5 to 8; dense: 9 items and more" in page


def test_trials_are_shown_once_each_with_how_they_ended() -> None:
    good = TrialResult(1e-3, 0, 0.5, 2, "a", (0.4, 0.5, 0.45))
    stopped = TrialResult(1e-4, 0, 0.25, 1, "b", (0.25,), stopped=True)
    diverged = TrialResult(1e-1, 0, 0.0, 0, "", (), diverged=True)
    best = TrialResult(1e-3, 1, 0.625, 3, "c", (0.5, 0.6, 0.625))
    page = render(trials_table([good, stopped, diverged], [good, best], best))
    rows = [line.split() for line in page.splitlines() if re.match(r"\s*0\.", line)]
    assert rows == [
        ["0.001", "0", "0.5000", "2", "3"],
        ["0.0001", "0", "0.2500", "1", "1", "cut", "short"],
        ["0.1", "0", "0.0000", "0", "0", "diverged"],
        ["0.001", "1", "0.6250", "3", "3", "best"],
    ]

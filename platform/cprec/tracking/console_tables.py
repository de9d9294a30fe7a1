"""Tables that jobs print: the comparison of models, and the trials of a search."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cprec.downstream.trial_records import TrialResult
from cprec.evaluation.comparison import Comparison, ComparisonRow
from cprec.evaluation.metrics import HISTORY_SLICES, Metrics

Kind = Literal["hr", "ndcg", "recall"]

COLUMNS: Mapping[str, tuple[Kind, str]] = {
    "HR@1": ("hr", "1"),
    "HR@3": ("hr", "3"),
    "HR@5": ("hr", "5"),
    "NDCG@3": ("ndcg", "3"),
    "NDCG@5": ("ndcg", "5"),
}
"""Columns of a comparison, and where their numbers stand in the metrics."""
CATALOGUE_COLUMNS: Mapping[str, tuple[Kind, str]] = {
    "recall@100": ("recall", "100"),
    "HR@1": ("hr", "1"),
    "HR@10": ("hr", "10"),
    "NDCG@10": ("ndcg", "10"),
}
"""Columns of a comparison over a whole catalogue."""


def comparison_table(comparison: Comparison, alpha: float) -> Table:
    """Returns a comparison as a table of at most 80 columns.

    Args:
        comparison: Models compared on one domain.
        alpha: Significance level; p below it is bold.
    """
    table = Table(
        title=f"{comparison.domain}, {comparison.split} split"
        + (f", {comparison.days}" if comparison.days else ""),
        caption="\n".join(
            [
                f"difference: {comparison.measure} minus that of {comparison.rows[0].name}, "
                "95 % interval",
                "p: paired t-test over users; below it over seeds",
                *_retrieval_lines(comparison),
                *_perplexity_lines(comparison),
                *_length_lines(comparison),
            ]
        ),
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    table.add_column("model", min_width=9, overflow="fold")
    columns = CATALOGUE_COLUMNS if comparison.mode == "catalogue" else COLUMNS
    for name in ("n", *columns, "difference", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        metrics = [row.metrics[kind][k] for kind, k in columns.values()]
        table.add_row(
            row.name if row.name == row.model else f"{row.name}\n{row.model}",
            f"{row.metrics['n']:,}",
            *(f"{value:.4f}" for value in metrics),
            *_format_difference(row, alpha),
        )
    return table


def modes_table(results: Sequence[tuple[str, Metrics]]) -> Table:
    """Returns each model in every mode that was run, as a table of at most 80 columns.

    Args:
        results: Name and metrics of each model and mode (`collect_modes`).
    """
    table = Table(
        title="every mode that was run, and HR@1 by length of history",
        caption="valid: answers that name a candidate, exactly, and by LLaRA's rule\n"
        + "; ".join(
            f"{name}: {first:.0f}{f' to {stop - 1:.0f}' if stop < inf else ' items and more'}"
            for name, (first, stop) in HISTORY_SLICES.items()
        ),
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    table.add_column("model", min_width=9, overflow="fold")
    table.add_column("mode", no_wrap=True)
    for name in ("n", "HR@1", "valid", "LLaRA", *HISTORY_SLICES):
        table.add_column(name, justify="right", no_wrap=True)
    for name, metrics in results:
        valid, slices = metrics.get("valid_ratio") or {}, metrics["slices"]
        values = [metrics["hr"]["1"], valid.get("exact"), valid.get("llara")]
        values += [slices[part]["hr"]["1"] if part in slices else None for part in HISTORY_SLICES]
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        table.add_row(name, metrics["mode"], f"{metrics['n']:,}", *shown)
    return table


def _retrieval_lines(comparison: Comparison) -> list[str]:
    """Returns one line that says what recall is of; none where nothing was retrieved."""
    if comparison.mode != "catalogue":
        return []
    return ["recall: of what is retrieved for a language model, of their own ranking for others"]


def _perplexity_lines(comparison: Comparison) -> list[str]:
    """Returns one line with the perplexities of the plain text, or none if it was not measured."""
    shown = [f"{row.name} {row.perplexity:.2f}" for row in comparison.rows if row.perplexity]
    return [f"perplexity of evaluate.text: {', '.join(shown)}"] if shown else []


def _length_lines(comparison: Comparison) -> list[str]:
    """Returns one line with the correlations of score and title length; none without scores."""
    shown = [
        f"{row.name} {value:+.2f}"
        for row in comparison.rows
        if (value := row.metrics.get("length_correlation")) is not None
    ]
    return [f"correlation of score and title length: {', '.join(shown)}"] if shown else []


def _format_difference(row: ComparisonRow, alpha: float) -> tuple[str, str]:
    """Returns the last two cells of a row: the difference of HR@1, and p."""
    if row.against is None:
        return "", ""
    difference = f"{row.against.difference:+.3f}"
    if row.against.high is not None:
        difference += f" ±{row.against.high - row.against.difference:.3f}"
    p_values = [test.p for test in (row.against, row.over_seeds) if test]
    shown = [f"[bold]{p:.2g}[/bold]" if p < alpha else f"{p:.2g}" for p in p_values]
    return difference, "\n".join(shown)


def trials_table(
    trials: Sequence[TrialResult], winner_trials: Sequence[TrialResult], best: TrialResult
) -> Table:
    """Returns the trials of a search as a table.

    Args:
        trials: Trials of the search.
        winner_trials: Trials of the best learning rate; those that are in `trials` too are shown
            once.
        best: The trial that was registered.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("learning rate", "seed", "HR@1 on validation", "best epoch", "epochs", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in [*trials, *(trial for trial in winner_trials if trial not in trials)]:
        table.add_row(
            f"{trial.lr:g}",
            str(trial.seed),
            f"{trial.hr1:.4f}",
            str(trial.epoch),
            str(len(trial.history)),
            _trial_remark(trial, best),
        )
    return table


def _trial_remark(trial: TrialResult, best: TrialResult) -> str:
    if trial == best:
        return "best"
    if trial.diverged:
        return "diverged"
    return "cut short" if trial.stopped else ""

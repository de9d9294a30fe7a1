"""Models side by side on the samples of one domain: the content of a stored comparison. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprec.evaluation.metrics import Metrics
from cprec.evaluation.significance import (
    PairedTest,
    compare_seeds,
    holm_correction,
    paired_t_test,
    permutation_test,
)

TESTED_CUTOFFS: Mapping[str, int] = {"catalogue": 10}
"""Value of k for which HR@k is tested, by form of evaluation; 1 for all others."""


@dataclass(frozen=True)
class ComparisonRow:
    """One model: its metrics, and how it differs from the reference.

    A model with several seeds is one row. Its metrics are the means over its seeds.

    Attributes:
        name: Name under which the model was asked for.
        model: What that is, such as `version-3`; for several seeds, how many there are.
        metrics: Its metrics.
        against: Paired test of `Comparison.measure` against the reference over users, on the mean
            over seeds of each sample. None for the reference itself.
        permutation_p: p of a permutation test of the same pairs.
        over_seeds: Paired test of that measure over seeds (paper Sec. 5.1.4); None without several.
        holm_p: p of `against`, corrected for all domains on which this run compared the two models.
        perplexity: Perplexity of `evaluate.text`, the mean over seeds. None without a text, and
            for a baseline.
    """

    name: str
    model: str
    metrics: Metrics
    against: PairedTest | None
    permutation_p: float | None = None
    over_seeds: PairedTest | None = None
    holm_p: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Models compared on one split of a domain.

    Attributes:
        name: Name of the comparison: the models, as they were asked for, and the mode.
        time: When it was made (Unix seconds); 0 where an earlier release made it.
        domain: Name of the domain.
        split: Split that was scored.
        mode: How the models answered: `score`, `generate` or `constrained`; or `catalogue` where
            they ranked the whole catalogue.
        chance: HR@1 of a random choice among the candidates.
        measure: Measure of the tests: `HR@1`, or `HR@10` of a catalogue.
        rows: One row per model, the reference first.
        days: Days whose purchases were scored, in words; empty where all were.
    """

    name: str
    time: float
    domain: str
    split: str
    mode: str
    chance: float
    measure: str
    rows: Sequence[ComparisonRow]
    days: str = ""


def collect_modes(
    comparison: Comparison, stored: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Metrics]]:
    """Returns the metrics of each model in every mode in which a run has evaluated it.

    Args:
        comparison: The comparison whose models are meant.
        stored: Comparisons that the run has stored, the oldest first; those of other samples are
            left out.

    Returns:
        (name, metrics) by model, and of each the mode of the comparison first.
    """
    found: dict[tuple[str, str], dict[str, Metrics]] = {
        (row.name, row.model): {row.metrics["mode"]: row.metrics} for row in comparison.rows
    }
    same = (comparison.domain, comparison.split, comparison.days)
    for other in reversed(stored):
        for row in other["rows"]:
            modes = found.get(_identity(row))
            metrics = row.get("metrics", {})
            is_same = (other["domain"], other.get("split"), other["days"]) == same
            if modes is not None and is_same and "mode" in metrics and "slices" in metrics:
                modes.setdefault(metrics["mode"], metrics)
    return [(name, metrics) for (name, _), modes in found.items() for metrics in modes.values()]


def tested_cutoff(form: str) -> int:
    """Returns the k of the HR@k that is tested in a form of evaluation."""
    return TESTED_CUTOFFS.get(form, 1)


def add_significance(
    row: ComparisonRow, reference: NDArray[np.float64], model: NDArray[np.float64]
) -> ComparisonRow:
    """Returns a row with its tests against the reference.

    Args:
        row: The row of a model.
        reference: Hits of the reference [seeds, samples].
        model: Hits of the model [seeds, samples].
    """
    mean_reference = reference.mean(axis=0)
    mean_model = model.mean(axis=0)
    return replace(
        row,
        against=paired_t_test(mean_reference, mean_model),
        permutation_p=permutation_test(mean_reference, mean_model),
        over_seeds=compare_seeds(reference, model),
    )


def add_holm_correction(comparison: Comparison, stored: Sequence[Mapping[str, Any]]) -> Comparison:
    """Returns a comparison with p corrected for the domains on which its run compared the same.

    That is the same two models, not only the same names, in the same split, mode and days.

    Args:
        comparison: The comparison.
        stored: Comparisons that the run has stored, the oldest first.
    """
    reference, *_ = comparison.rows
    same = (comparison.split, comparison.mode, comparison.days, reference.name, reference.model)

    def p_values_elsewhere(model: ComparisonRow) -> list[float]:
        """Returns p of a model on each other domain, by the newest comparison there."""
        by_domain = {
            other["domain"]: row["against"]["p"]
            for other in stored
            for row in other["rows"]
            if (other.get("split"), other["mode"], other["days"], *_identity(other["rows"][0]))
            == same
            and other["domain"] != comparison.domain
            and _identity(row) == (model.name, model.model)
            and row["against"]
        }
        return list(by_domain.values())

    rows = [
        replace(row, holm_p=holm_correction([row.against.p, *p_values_elsewhere(row)])[0])
        if row.against
        else row
        for row in comparison.rows
    ]
    return replace(comparison, rows=rows)


def _identity(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the name of a stored row, and what that was; an earlier release did not say it."""
    return row["name"], row.get("model", "")

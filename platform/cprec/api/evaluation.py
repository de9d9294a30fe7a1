"""Evaluation from a program or a notebook: models compared, and the gate before one serves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from cluster.console import Say
from cprec.config.recipe import Recipe

# The workflows are imported late: they load torch, and reading what this offers need not wait.
if TYPE_CHECKING:
    from cprec.evaluation.comparison import ComparisonRow


def evaluate(
    recipe: Recipe,
    models: Sequence[str] | None = None,
    domain: str | None = None,
    *,
    say: Say = print,
) -> pl.DataFrame:
    """Compares models on one domain, all with the same candidates.

    What was scored before is not scored again.

    Args:
        recipe: Its `evaluate` says what is scored, and how.
        models: Names of models, as `Model.load` takes them, or of baselines (`sasrec`, `gru4rec`,
            `popularity`). The first is the reference of the tests. None: those of the recipe.
        domain: The domain; None: that of the recipe.
        say: Takes lines of progress.

    Returns:
        One row per model, with the columns model, version, domain, split, mode, n, chance, one for
        each measure (`hr@1`, `ndcg@5`, `valid_ratio@exact`, ...), and perplexity of
        `evaluate.text`; and against the first model, difference, low and high (its 95 % interval),
        p and holm_p.

    Raises:
        UserError: A model or the domain does not exist, or cannot be scored.
    """
    from cprec.tracking.registry import Registry
    from cprec.workflows.evaluate import compare_models

    if domain is not None:
        changed = recipe.evaluate.model_copy(update={"domain": domain})
        recipe = recipe.model_copy(update={"evaluate": changed})
    names = recipe.evaluate.models if models is None else models
    comparison = compare_models(recipe, Registry.from_recipe(recipe), names, say)
    shared = {
        "domain": comparison.domain,
        "split": comparison.split,
        "mode": comparison.mode,
        "chance": comparison.chance,
    }
    return pl.DataFrame([_to_row(row, shared) for row in comparison.rows])


class Promotion(NamedTuple):
    """What the gate decided.

    Attributes:
        version: Number of the version that it was about.
        promoted: Whether that is the champion now.
        reason: Why, for people.
    """

    version: int
    promoted: bool
    reason: str


def promote(
    recipe: Recipe, model: str = "candidate", *, by: str | None = None, say: Say = print
) -> Promotion:
    """Makes a model the champion if it passes the gate.

    Args:
        recipe: Its `gate` says what a champion must show.
        model: The model, as `Model.load` takes it. One that is no version yet becomes one.
        by: Who asks, for the record.
        say: Takes lines of progress: each condition of the gate, with what was seen.

    Raises:
        UserError: There is no such model, or it cannot be compared.
    """
    from cprec.tracking.registry import Registry
    from cprec.workflows.promote import promote as put_before_gate

    registry = Registry.from_recipe(recipe)
    number, decision = put_before_gate(recipe, registry, say, model, by)
    return Promotion(number, decision.promote, decision.reason)


def _to_row(row: "ComparisonRow", shared: dict[str, Any]) -> dict[str, Any]:
    """Returns a model of a comparison as a row of a frame."""
    metrics: dict[str, Any] = dict(row.metrics)
    measures = {
        f"{kind}@{cutoff}": value
        for kind in ("hr", "ndcg", "recall", "valid_ratio")
        for cutoff, value in (metrics.get(kind) or {}).items()
    }
    test = row.against
    return {
        "model": row.name,
        "version": row.model,
        **shared,
        "n": metrics["n"],
        **measures,
        "difference": None if test is None else test.difference,
        "low": None if test is None else test.low,
        "high": None if test is None else test.high,
        "p": None if test is None else test.p,
        "holm_p": row.holm_p,
        "perplexity": row.perplexity,
    }

"""Compare models on one domain's test samples, all with the same candidates.

python jobs/evaluate.py --run cpt --evaluate.domain Stationery --evaluate.models base,candidate
"""

import source_roots  # noqa: F401

import argparse
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cprec.config.command import main
from cprec.workflows.evaluate import (
    Comparison,
    ComparisonRow,
    compare_models,
    find_models,
    load_samples,
)
from cprec.config.recipe import Recipe
from cprec.tracking.registry import Registry


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Score the models of `evaluate.models`; print them beside each other, the first as the reference."""
    registry = Registry.from_recipe(recipe)
    if options.dry_run:
        corpus, domain, samples = load_samples(recipe)
        models = find_models(recipe, registry, recipe.evaluate.models, corpus, print)
        print(
            f"{domain}, version {corpus.version} of {corpus.uri}: {len(samples):,} {recipe.evaluate.split} samples"
        )
        print(f"to be scored: {', '.join(model.label for model in models)}")
        return
    Console().print(
        comparison_table(
            compare_models(recipe, registry, recipe.evaluate.models, print), recipe.evaluate.alpha
        )
    )


def comparison_table(comparison: Comparison, alpha: float) -> Table:
    """The comparison as it is printed, 80 columns wide. alpha: below it, a p-value is set in bold."""
    shown = Table(
        title=f"{comparison.domain}, {comparison.split} split",
        caption="\n".join(
            [
                f"difference: HR@1 minus that of {comparison.rows[0].name}, 95 % interval",
                "p: paired t-test over users; below it over seeds",
                *_perplexity_lines(comparison),
            ]
        ),
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    shown.add_column("model", min_width=9)
    for name in ("n", "HR@1", "HR@3", "HR@5", "NDCG@3", "NDCG@5", "difference", "p"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        measured = [
            *(row.metrics["hr"][k] for k in ("1", "3", "5")),
            *(row.metrics["ndcg"][k] for k in ("3", "5")),
        ]
        name = row.name if row.name == row.model else f"{row.name}\n{row.model}"
        shown.add_row(
            name,
            f"{row.metrics['n']:,}",
            *(f"{value:.4f}" for value in measured),
            *_format_difference(row, alpha),
        )
    return shown


def _perplexity_lines(comparison: Comparison) -> list[str]:
    """The line on the perplexity of the plain text, if it was measured."""
    measured = [f"{row.name} {row.perplexity:.2f}" for row in comparison.rows if row.perplexity]
    return [f"perplexity of evaluate.text: {', '.join(measured)}"] if measured else []


def _format_difference(row: ComparisonRow, alpha: float) -> tuple[str, str]:
    if row.against is None:
        return "", ""
    reach = "" if row.against.high is None else f" ±{row.against.high - row.against.difference:.3f}"
    values = [paired.p for paired in (row.against, row.over_seeds) if paired]
    return f"{row.against.difference:+.3f}{reach}", "\n".join(
        f"[bold]{p:.2g}[/bold]" if p < alpha else f"{p:.2g}" for p in values
    )


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__ or ""))

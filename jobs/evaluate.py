"""Compare models on one domain's test samples, all with the same candidates.

python jobs/evaluate.py --run cpt --evaluate.domain Stationery --evaluate.models base,candidate
"""

import source_roots  # noqa: F401

import argparse
import sys

from rich.console import Console
from rich.table import Table

from cprec.command import main
from cprec.compare import Comparison, compare, contenders, samples_to_score
from cprec.recipe import Recipe
from cprec.registry import Registry


def run(recipe: Recipe, options: argparse.Namespace) -> None:
    """Score the models of `evaluate.models`; print them beside each other, the first as the reference."""
    registry = Registry.of(recipe)
    if options.dry_run:
        models, (corpus, domain, samples) = contenders(recipe, registry, recipe.evaluate.models), samples_to_score(recipe)
        print(f"{domain}, version {corpus.version} of {corpus.uri}: {len(samples):,} {recipe.evaluate.split} samples")
        print(f"to be scored: {', '.join(model.label for model in models)}")
        return
    Console().print(table(compare(recipe, registry, recipe.evaluate.models), recipe.evaluate.alpha))


def table(comparison: Comparison, alpha: float) -> Table:
    """The comparison as it is printed. alpha: below it, a p-value is set in bold."""
    reference = comparison.rows[0].name
    shown = Table(title=f"{comparison.domain}, {comparison.split} split", caption=f"difference: HR@1 minus that of {reference}; paired t-test")
    shown.add_column("model")
    for name in ("n", "HR@1", "HR@3", "HR@5", "NDCG@3", "NDCG@5", "difference", "95 % interval", "p"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        measured = [*(row.metrics["hr"][k] for k in ("1", "3", "5")), *(row.metrics["ndcg"][k] for k in ("3", "5"))]
        against = ["", "", ""]
        if row.against is not None:
            bounded = row.against.low is not None and row.against.high is not None
            interval = f"{row.against.low:+.4f} .. {row.against.high:+.4f}" if bounded else "unbounded"
            p = f"{row.against.p:.2g}"
            against = [f"{row.against.difference:+.4f}", interval, f"[bold]{p}[/bold]" if row.against.p < alpha else p]
        name = row.name if row.name == row.model else f"{row.name} ({row.model})"
        shown.add_row(name, f"{row.metrics['n']:,}", *(f"{value:.4f}" for value in measured), *against)
    return shown


if __name__ == "__main__":
    sys.exit(main(run, __doc__ or ""))

"""Evaluate: compare models on one domain's samples, all with the same candidates.

    python jobs/evaluate.py --evaluate.domain Stationery --evaluate.models base,candidate

The first model is the reference of the tests.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line, print_table
from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.evaluate.comparison import collect_modes
from cprec.runs.comparisons import read_comparisons
from cprec.tracking.console_tables import comparison_table, modes_table
from cprec.tracking.registry import Registry
from cprec.workflows.evaluate import compare_models
from cprec.workflows.evaluation_plan import plan_evaluation
from cprec.workflows.models import own_run

AGAIN = "the same command goes on with what is not scored yet"


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Scores the models of `evaluate.models`, and prints them side by side."""
    registry = Registry.from_recipe(recipe)
    names = recipe.evaluate.models
    if options.dry_run:
        plan_evaluation(recipe, registry, names, print_line)
    else:
        comparison = compare_models(recipe, registry, names, print_line)
        print_table(comparison_table(comparison, recipe.evaluate.alpha))
        print_table(modes_table(collect_modes(comparison, read_comparisons(own_run(recipe)))))


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, again=AGAIN))

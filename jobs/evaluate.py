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
from cprec.tracking.console_tables import comparison_table
from cprec.tracking.registry import Registry
from cprec.workflows.evaluate import compare_models, plan_evaluation

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


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, again=AGAIN))

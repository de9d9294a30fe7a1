# PYTHON_ARGCOMPLETE_OK
"""Evaluate: compare models on one domain's samples, all with the same candidates.

    python jobs/evaluate.py my.yaml --run first          base against candidate
    python jobs/evaluate.py --evaluate.domain Games --evaluate.models base,sasrec,candidate
    python jobs/evaluate.py my.yaml --evaluate.candidates catalogue --evaluate.models base,champion

The first model is the reference of the tests. What was scored before is not scored again.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line, print_table
from cprec.config.command import MODEL_KEYS, RETRIEVAL_KEYS, WORKER_KEYS, Job, main
from cprec.config.recipe import Recipe

AGAIN = "the same command goes on with what is not scored yet"
KEYS = (*MODEL_KEYS, *WORKER_KEYS, *RETRIEVAL_KEYS, "evaluate", "cost")


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Scores the models of `evaluate.models`, and prints them side by side."""
    from cprec.config.next_steps import after_evaluation
    from cprec.evaluation.comparison import collect_modes
    from cprec.runs.comparisons import read_comparisons
    from cprec.tracking.console_tables import comparison_table, modes_table
    from cprec.tracking.registry import Registry
    from cprec.tracking.version_names import CANDIDATE
    from cprec.workflows.evaluate import compare_models
    from cprec.workflows.evaluation.plan import plan_evaluation
    from cprec.runs.run_records import recipe_run_uri

    registry = Registry.from_recipe(recipe)
    names = recipe.evaluate.models
    if options.dry_run:
        plan_evaluation(recipe, registry, names, print_line)
    else:
        comparison = compare_models(recipe, registry, names, print_line)
        print_table(comparison_table(comparison, recipe.evaluate.alpha))
        stored = read_comparisons(recipe_run_uri(recipe))
        print_table(modes_table(collect_modes(comparison, stored)))
        for line in after_evaluation(recipe, options, comparison.domain, CANDIDATE in names):
            print_line(line)


JOB = Job(run_job, __doc__, KEYS, again=AGAIN)

if __name__ == "__main__":
    sys.exit(main(JOB))

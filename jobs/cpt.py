"""Continual pre-training: a corpus and a base model in, a registered, audited adapter out.

    python jobs/cpt.py                                                            simulated shoppers, a tiny model, this machine
    python jobs/cpt.py jobs/recipes/amazon.yaml --corpus out/corpus --run first   your recipe; the same line again resumes
    ray job submit --working-dir . -- python jobs/cpt.py RECIPE.yaml              on a cluster

`--dry-run` checks every input and prints the plan. A run that stopped, however, goes on from its last complete checkpoint.
"""

import argparse
import sys

import source_roots  # noqa: F401
from rich.console import Console

from cprec.config.command import main
from cprec.workflows.pretrain import preview, pretrain
from cprec.config.recipe import Recipe


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What this job takes beside the recipe."""
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that may differ from the run's first start",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Train the run of a recipe to its end and say where everything is."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if options.dry_run:
        preview(recipe, options.allow_change, say)
    else:
        pretrain(recipe, options.allow_change, say).print_summary(recipe.mlflow.model, say)


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

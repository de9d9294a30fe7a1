"""Promote: the candidate becomes the champion, unless the gate refuses it.

    python jobs/promote.py --run first --evaluate.domain Stationery    the newest version of a run
    python jobs/promote.py --model 3
    python jobs/promote.py --rollback

The section `gate` of the recipe holds the limits.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import add_as_flag, add_model_flag, main
from cprec.config.recipe import Recipe
from cprec.tracking.registry import Registry
from cprec.tracking.version_names import CANDIDATE
from cprec.workflows.promote import plan_promotion, plan_rollback, promote, roll_back


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --as, --model and --rollback."""
    add_as_flag(parser)
    add_model_flag(parser, CANDIDATE)
    parser.add_argument(
        "--rollback", action="store_true", help="make the previous champion the champion again"
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Promotes or rolls back, and prints the decision with its reason."""
    registry = Registry.from_recipe(recipe)
    if options.dry_run and options.rollback:
        champion, previous = plan_rollback(registry)
        print_line(f"would make {previous} the champion again, in place of {champion}")
        return
    if options.dry_run:
        plan_promotion(recipe, registry, options.model, print_line)
        return
    number, decision = (
        roll_back(registry, options.by)
        if options.rollback
        else promote(recipe, registry, print_line, options.model, options.by)
    )
    outcome = "is the champion" if decision.promote else "was not promoted"
    print_line(f"version {number} {outcome}: {decision.reason}")


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

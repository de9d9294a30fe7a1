# PYTHON_ARGCOMPLETE_OK
"""Promote: the candidate becomes the champion, unless the gate refuses it.

    python jobs/promote.py --run first --evaluate.domain Games    the newest version of a run
    python jobs/promote.py --model out/adapter --gate.min_hr1 0.2      becomes a version first
    python jobs/promote.py --rollback

The section `gate` of the recipe holds the limits. Exit code 3 if the gate refuses.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import MODEL_KEYS, WORKER_KEYS, Job, add_as_flag, add_model_flag, main
from cprec.config.recipe import Recipe

KEYS = (
    *(*MODEL_KEYS, *WORKER_KEYS, "model.license", "gate", "cost"),
    *(f"evaluate.{key}" for key in "domain split text max_users batch compile".split()),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --as, --model and --rollback."""
    add_as_flag(parser)
    add_model_flag(parser, "candidate", stored_too=True)
    parser.add_argument("--rollback", action="store_true", help="the previous champion again")


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Promotes or rolls back, and prints the decision with its reason."""
    from cprec.tracking.registry import Registry
    from cprec.tracking.report.renewal import renew_report
    from cprec.workflows.champion import describe_champion, preview_rollback, roll_back

    registry = Registry.from_recipe(recipe)
    if options.rollback:
        if options.dry_run:
            print_line(preview_rollback(registry))
            return
        number, decision = roll_back(registry, options.by)
    else:
        # It imports networks, for which a rollback need not wait.
        from cprec.workflows.promote import plan_promotion, promote

        if options.dry_run:
            plan_promotion(recipe, registry, options.model, print_line)
            return
        number, decision = promote(recipe, registry, print_line, options.model, options.by)
    renew_report(recipe, registry)
    print_line(describe_champion(number, decision))


JOB = Job(run_job, __doc__, KEYS, add_flags)

if __name__ == "__main__":
    sys.exit(main(JOB))

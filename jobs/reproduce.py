"""Reproduce: the tables and figures of the paper from one recipe, as a page, LaTeX and Markdown.

    python jobs/reproduce.py                        all of them, on simulated shoppers
    python jobs/reproduce.py my.yaml --only table3,figure4 --budget-minutes 60

Each step is kept by what it depends on, so the same command goes on after a kill or at the end of
a budget, and computes nothing twice. --dry-run shows what is done and what is to do.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import main
from cprec.config.recipe import Recipe


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --only and --budget-minutes."""
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAMES",
        help="tables and figures, such as table3,figure4 [all]",
    )
    parser.add_argument(
        "--budget-minutes",
        type=float,
        metavar="MINUTES",
        help="start no further step after this time [none]",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Computes what is missing, and prints where the page is."""
    # Imported late: so the command line is checked, and --help shown, without waiting for torch.
    from cprec.reproduction.workflow import describe, plan_reproduction, reproduce

    plan = plan_reproduction(recipe, options.only)
    if options.dry_run:
        describe(plan, print_line)
        return
    result = reproduce(plan, options.budget_minutes, print_line)
    if result.missing:
        print_line(
            f"the budget ended; {len(result.missing)} steps are missing, and the same command "
            f"goes on: {', '.join(result.missing)}"
        )
    if result.page:
        print_line(f"page: {result.page}")


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

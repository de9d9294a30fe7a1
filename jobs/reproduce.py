# PYTHON_ARGCOMPLETE_OK
"""Reproduce: the paper's tables and figures from one recipe, as a page, LaTeX and Markdown.

    python jobs/reproduce.py                        all of them, on simulated shoppers
    python jobs/reproduce.py my.yaml --only table3,figure4 --budget-minutes 60
    python jobs/reproduce.py my.yaml --dry-run

Each step is kept by what it depends on, so the same command goes on after a kill or at the end of
a budget, and computes nothing twice. --dry-run shows what is done and what is to do.
"""

import source_roots  # noqa: F401

import argparse
import sys
from functools import partial

from cluster.console import print_line
from cprec.config.command import Job, main
from cprec.config.recipe import Recipe

AGAIN = "the same command goes on with the steps that are missing"
KEYS = (
    *("run", "storage", "corpus", "corpus_version", "seed", "workers", "cluster", "mlflow"),
    *("data", "simulate", "model", "tiny", "schedule", "train", "checkpoint", "baseline"),
    *("finetune", "search", "evaluate", "reproduce"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --only and --budget-minutes."""
    names = "tables and figures, such as table3,figure4 [all]"
    split = partial(str.split, sep=",")
    parser.add_argument("--only", type=split, default=[], metavar="NAMES", help=names)
    budget = "start no further step after this time [none]"
    parser.add_argument("--budget-minutes", type=float, metavar="MINUTES", help=budget)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Computes what is missing, and prints where the page is."""
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


JOB = Job(run_job, __doc__, KEYS, add_flags, again=AGAIN)

if __name__ == "__main__":
    sys.exit(main(JOB))

# PYTHON_ARGCOMPLETE_OK
"""Report: one page on a run, for people who were not there.

    python jobs/report.py my.yaml --run first               its page
    python jobs/report.py my.yaml --run first --format md   the same as Markdown, without pictures
    python jobs/report.py my.yaml --run first --cost.price_per_worker_hour 2.5

What was trained on what, how models rank, what was forgotten, cost, lineage, and how to load the
adapter. Training, evaluate and promote make the page, too; this job makes it again.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import Job, main
from cprec.config.recipe import Recipe

KEYS = ("run", "storage", "mlflow", "cost")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --format."""
    text = "html: one page that needs no network; md: Markdown"
    parser.add_argument("--format", choices=("html", "md"), default="html", help=text)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Makes the report, and prints where it is."""
    from cprec.tracking.registry import Registry
    from cprec.tracking.report.renewal import require_run, write_report

    if options.dry_run:
        print_line(f"would make the report of {require_run(recipe)} as {options.format}")
        return
    uri = write_report(recipe, Registry.from_recipe(recipe), options.format)
    print_line(f"report: {uri}")


JOB = Job(run_job, __doc__, KEYS, add_flags)

if __name__ == "__main__":
    sys.exit(main(JOB))

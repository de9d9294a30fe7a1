# PYTHON_ARGCOMPLETE_OK
"""Doctor: look at all that a recipe's jobs depend on, before they cost money.

    python jobs/doctor.py my.yaml
    python jobs/doctor.py my.yaml --json
    python jobs/doctor.py --storage s3://bucket/runs --workers 16

Storage, corpus, base model, MLflow, disks, and Ray with its nodes; a table of what was seen, what
is allowed and what to do. What it writes is removed again. Exit code 1 if something fails. With
`ray job submit` it looks from where the jobs will run.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line, print_table
from cprec.config.command import MODEL_KEYS, WORKER_KEYS, Job, main
from cprec.config.recipe import Recipe

KEYS = (*MODEL_KEYS, *WORKER_KEYS, "train.stream_cpus")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Runs the checks, and prints the report."""
    from cprec.workflows.doctor.examination import plan_checks
    from cprec.workflows.doctor.findings import run_checks

    checks = plan_checks(recipe)
    if options.dry_run:
        for check in checks:
            print_line(f"would check {check.name}: {check.does}")
        return
    report = run_checks(checks, lambda line: print(line, file=sys.stderr))
    if options.json:
        print_line(report.to_json())
    else:
        print_table(report.to_table())
    report.require_passed()
    if not options.json:
        print_line(report.verdict())


JOB = Job(run_job, __doc__, KEYS, add_flags)

if __name__ == "__main__":
    sys.exit(main(JOB))

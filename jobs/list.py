# PYTHON_ARGCOMPLETE_OK
"""List what a storage holds: runs, the versions of their corpora, and registered models.

    python jobs/list.py my.yaml
    python jobs/list.py my.yaml runs --storage s3://bucket/runs
    python jobs/list.py my.yaml models --json

Without a word all three are listed. --json prints one object, with a list for each. Nothing is
written.
"""

import source_roots  # noqa: F401

import argparse
import dataclasses
import json
import sys

from cluster.console import print_line
from cprec.config.command import Job, main, print_notice
from cprec.config.recipe import Recipe

KEYS = ("storage", "corpus", "mlflow")
PARTS = ("runs", "corpora", "models")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of columns")


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Lists what was asked for, and prints it."""
    from cprec.workflows.list_storage import format_lists, list_storage

    parts = PARTS if options.action is None else (options.action,)
    listed = list_storage(recipe, parts, print_notice)
    if options.json:
        plain = {part: [dataclasses.asdict(row) for row in rows] for part, rows in listed.items()}
        print_line(json.dumps(plain, indent=2))
    else:
        print_line(format_lists(listed))
    if not any(listed.values()):
        print_notice(f"nothing yet; looked for {', '.join(parts)} at {recipe.storage}")


JOB = Job(run_job, __doc__, KEYS, add_flags, actions=PARTS)

if __name__ == "__main__":
    sys.exit(main(JOB))

"""Promote: the candidate becomes the champion, unless the gate refuses it.

    python jobs/promote.py --evaluate.domain Stationery
    python jobs/promote.py --rollback

The section `gate` of the recipe holds the limits.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.tracking.registry import ALIASES, Registry
from cprec.workflows.promote import promote, roll_back


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --rollback."""
    parser.add_argument(
        "--rollback", action="store_true", help="make the previous champion the champion again"
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Promotes or rolls back, and prints the decision with its reason."""
    registry = Registry.from_recipe(recipe)
    if options.dry_run:
        versions = {alias: registry.version_by_alias(alias) for alias in ALIASES}
        print_line(
            ", ".join(
                f"{alias}: {f'version {version.number}' if version else 'none'}"
                for alias, version in versions.items()
            )
        )
        return
    number, decision = (
        roll_back(registry) if options.rollback else promote(recipe, registry, print_line)
    )
    outcome = "is the champion" if decision.promote else "was not promoted"
    print_line(f"version {number} {outcome}: {decision.reason}")


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

"""Put the candidate before the gate: it becomes the champion unless it is worse than the present one.

python jobs/promote.py --evaluate.domain Stationery
python jobs/promote.py --rollback
"""

import source_roots  # noqa: F401

import argparse
import sys

from cprec.config.command import main
from cprec.workflows.promote import promote, roll_back
from cprec.config.recipe import Recipe
from cprec.tracking.registry import Registry


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--rollback`."""
    parser.add_argument(
        "--rollback", action="store_true", help="make the previous champion the champion again"
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Promote or roll back; print the decision and its reason."""
    registry = Registry.from_recipe(recipe)
    if options.dry_run:
        aliases = {
            name: registry.version_by_alias(name) for name in ("candidate", "champion", "previous")
        }
        print(
            ", ".join(
                f"{name}: {f'version {found.number}' if found else 'none'}"
                for name, found in aliases.items()
            )
        )
        return
    version, decision = (
        roll_back(registry) if options.rollback else promote(recipe, registry, print)
    )
    print(
        f"version {version} {'is the champion' if decision.promote else 'was not promoted'}: {decision.reason}"
    )


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__ or "", add_flags))

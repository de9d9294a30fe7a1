"""A branch: anneal a stable checkpoint on the mixed samples into a release candidate, while its trunk goes on or rests.

    python jobs/anneal.py RECIPE.yaml --from out/runs/cpt/checkpoints/000000008192-0

The branch is a run of its own, `<run>-anneal-<samples>` unless --run names it; the same line again resumes it.
"""

import argparse
import sys

import source_roots  # noqa: F401
from rich.console import Console

from cluster.errors import RunError
from cluster.storage import absolute_uri
from cprec.config.command import main
from cprec.workflows.pretrain import preview, pretrain
from cprec.config.recipe import Recipe
from cprec.runs.checkpoint import CheckpointName


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What this job takes beside the recipe."""
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="URI",
        help="the stable checkpoint to anneal",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that may differ from the branch's first start",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Train the branch to its end and say where everything is."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    source = absolute_uri(options.source)
    trunk, name = source.split("/")[-3], CheckpointName.parse(source.split("/")[-1])
    if name is None:
        raise RunError(
            f"--from {options.source}: not a checkpoint; give <storage>/<run>/checkpoints/<samples>-<attempt>"
        )
    run = options.run or f"{trunk}-anneal-{name.samples}"
    if run == trunk:
        raise RunError(f"--run {run}: that is the trunk; give the branch another name, or none")
    branch = recipe.model_copy(update={"run": run, "continue_from": source, "branch": True})
    if options.dry_run:
        preview(branch, options.allow_change, say)
    else:
        pretrain(branch, options.allow_change, say).print_summary(recipe.mlflow.model, say)


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

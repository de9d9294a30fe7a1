"""Export a registered model as one plain directory (transformers, vLLM), its adapter merged into the base.

python jobs/merge.py --model models:/cprec@champion --out out/merged
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.storage import absolute_uri
from cprec.config.command import main
from cprec.workflows.merge import export_model
from cprec.config.recipe import Recipe
from cprec.workflows.recommend import find_registered_model
from cprec.tracking.registry import Registry


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What this job takes beside the recipe."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="models:/NAME@ALIAS",
        help="a registered model: models:/NAME@champion or models:/NAME/3",
    )
    parser.add_argument(
        "--out", required=True, metavar="URI", help="where the directory goes; nothing may be there"
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Merge and write."""
    model, place = (
        find_registered_model(Registry.from_recipe(recipe), options.model),
        absolute_uri(options.out),
    )
    if options.dry_run:
        print(f"would merge {model.label} ({model.checkpoint}) into {model.base}, in {place}")
        return
    export_model(recipe, model, place)
    print(f"{model.label} merged into {model.base}: {place}")


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__ or "", add_flags))

"""Export a registered model as one plain directory (transformers, vLLM), its adapter merged into the base.

python jobs/merge.py --model models:/cprec@champion --out out/merged
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.storage import absolute
from cprec.config.command import main
from cprec.workflows.merge import export
from cprec.config.recipe import Recipe
from cprec.workflows.recommend import contender
from cprec.tracking.registry import Registry


def flags(parser: argparse.ArgumentParser) -> None:
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


def run(recipe: Recipe, options: argparse.Namespace) -> None:
    """Merge and write."""
    model, place = contender(Registry.of(recipe), options.model), absolute(options.out)
    if options.dry_run:
        print(f"would merge {model.label} ({model.checkpoint}) into {model.base}, in {place}")
        return
    export(recipe, model, place)
    print(f"{model.label} merged into {model.base}: {place}")


if __name__ == "__main__":
    sys.exit(main(run, __doc__ or "", flags))

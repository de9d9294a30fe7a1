"""Rank candidates for one history with a registered model.

python jobs/recommend.py --model models:/cprec@champion --history "oak lamp" --history "steel mug" --candidates titles.txt
"""

import source_roots  # noqa: F401

import argparse
import sys

from rich.console import Console

from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.workflows.recommend import find_registered_model, recommend, read_candidate_titles
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
        "--history",
        action="append",
        required=True,
        metavar="TITLE",
        help="a title that was bought, the oldest first; once for each",
    )
    parser.add_argument(
        "--candidates",
        required=True,
        metavar="FILE",
        help="text file of candidate titles, one a line",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Print the ranking."""
    console = Console()
    model = find_registered_model(Registry.from_recipe(recipe), options.model)
    candidates = read_candidate_titles(options.candidates)
    if options.dry_run:
        console.print(
            f"would rank {len(candidates)} candidates with {model.label}: {model.checkpoint}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    for place, (title, chance) in enumerate(
        recommend(recipe, model, options.history, candidates), 1
    ):
        console.print(
            f"{place:>3}  {chance:6.1%}  {title}", markup=False, highlight=False, soft_wrap=True
        )


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__ or "", add_flags))

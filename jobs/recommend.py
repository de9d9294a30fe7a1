"""Recommend: rank candidates for one history with a registered model.

    python jobs/recommend.py --model models:/cprec@champion --candidates titles.txt \\
        --history "oak lamp" --history "steel mug"
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import add_model_flag, main
from cprec.config.recipe import Recipe
from cprec.tracking.registry import Registry
from cprec.workflows.models import find_text_model
from cprec.workflows.recommend import read_candidate_titles, recommend


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model, --history and --candidates."""
    add_model_flag(parser)
    parser.add_argument(
        "--history",
        action="append",
        required=True,
        metavar="TITLE",
        help="a title of the history; repeat it for each one, the oldest first",
    )
    parser.add_argument(
        "--candidates",
        required=True,
        metavar="FILE",
        help="text file of candidate titles, one a line",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Prints the ranking, with the share that each candidate has of them all."""
    model = find_text_model(recipe, Registry.from_recipe(recipe), options.model)
    candidates = read_candidate_titles(options.candidates)
    if options.dry_run:
        print_line(
            f"would rank {len(candidates)} candidates with {model.label}: {model.checkpoint}"
        )
        return
    ranking = recommend(recipe, model, options.history, candidates, print_line)
    print_line("rank  share  title")
    for rank, (title, share) in enumerate(ranking, 1):
        print_line(f"{rank:>4}  {share:5.3f}  {title}")
    print_line(
        "share: of the likelihood of these candidates alone; not calibrated, so no confidence"
    )


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

# PYTHON_ARGCOMPLETE_OK
"""Recommend: rank candidates for one history.

    python jobs/recommend.py --model models:/cprec@champion --candidates titles.txt \\
        --history "oak lamp" --history "steel mug"
    python jobs/recommend.py --model models:/cprec-Games@champion --candidates ids.txt --user u7
    python jobs/recommend.py --model base --candidates ids.txt --ids --history item-1

Without --ids and --user, history and candidates are titles. A hybrid model takes ids only.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import MODEL_KEYS, RANKING_KEYS, Job, add_model_flag, main
from cprec.config.recipe import Recipe

KEYS = (*MODEL_KEYS, *RANKING_KEYS, "recommend.domain")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model, --history, --ids, --user and --candidates."""
    add_model_flag(parser, stored_too=True)
    item = "a title, or with --ids an item id; repeat it for each one, the oldest first"
    parser.add_argument("--history", action="append", default=[], metavar="ITEM", help=item)
    by_ids = "history and candidates are item ids of recommend.domain"
    parser.add_argument("--ids", action="store_true", help=by_ids)
    by_user = "take the history of this user of the corpus; candidates are item ids"
    parser.add_argument("--user", metavar="ID", help=by_user)
    one_a_line = "text file of candidates, one a line"
    parser.add_argument("--candidates", required=True, metavar="FILE", help=one_a_line)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Prints the ranking, with the share that each candidate has of them all."""
    from cprec.tracking.registry import Registry
    from cprec.workflows.evaluation.models import find_model
    from cprec.workflows.recommend import plan_request, rank

    model = find_model(recipe, Registry.from_recipe(recipe), options.model)
    given = (options.history, options.candidates, options.ids, options.user)
    request = plan_request(recipe, model, *given)
    print_line(request.describe(model))
    if options.dry_run:
        return
    print_line("rank  share  item")
    for number, (item, share) in enumerate(rank(recipe, model, request, print_line), 1):
        print_line(f"{number:>4}  {share:5.3f}  {item}")
    print_line("share: of the likelihood of these candidates alone; not calibrated: no confidence")


JOB = Job(run_job, __doc__, KEYS, add_flags)

if __name__ == "__main__":
    sys.exit(main(JOB))

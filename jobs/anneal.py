# PYTHON_ARGCOMPLETE_OK
"""Anneal a branch: make a release candidate of a stable checkpoint, while its trunk goes on.

    python jobs/anneal.py my.yaml --from out/runs/cpt/checkpoints/000000008192-0
    python jobs/anneal.py my.yaml --from s3://bucket/runs/cpt/checkpoints/000000008192-0 --run rc-1
    python jobs/anneal.py my.yaml --from out/runs/cpt/checkpoints/000000008192-0 --dry-run

The branch trains on mixed samples only. It is a run of its own, `<trunk>-anneal-<samples>` unless
--run names it; the same line again resumes it.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import RESUMES, TRAINING_KEYS, Job, add_allow_change_flag, main
from cprec.config.recipe import Recipe

KEYS = TRAINING_KEYS


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --from and --allow-change."""
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="URI",
        help="the stable checkpoint to anneal",
    )
    add_allow_change_flag(parser)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Trains the branch to its end, and prints where everything is."""
    from cprec.config.next_steps import after_pretraining
    from cprec.workflows.pretraining.prepare import branch_recipe, open_corpus, preview_corpus
    from cprec.workflows.pretrain import pretrain, preview

    # Not recipe.run: that names the trunk where --run does not name the branch.
    branch = branch_recipe(recipe, options.source, options.keys.get("run"))
    if options.dry_run:
        with preview_corpus(branch, print_line) as corpus:
            preview(branch, corpus, options.allow_change, print_line)
        return
    corpus = open_corpus(branch, print_line)
    result = pretrain(branch, corpus, options.allow_change, print_line)
    result.print_summary(recipe.mlflow.model, print_line)
    for line in after_pretraining(branch, options, None):
        print_line(line)


JOB = Job(run_job, __doc__, KEYS, add_flags, again=RESUMES)

if __name__ == "__main__":
    sys.exit(main(JOB))

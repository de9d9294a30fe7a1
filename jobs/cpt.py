# PYTHON_ARGCOMPLETE_OK
"""Continual pre-training: a corpus and a base model in, an audited and registered adapter out.

    python jobs/cpt.py                       simulated shoppers, a tiny model, this machine
    python jobs/cpt.py my.yaml --run first   your recipe; the same line again resumes
    ray job submit --working-dir . -- python jobs/cpt.py my.yaml    on a cluster

--dry-run checks every input and prints the plan. A run that stopped, for whatever reason, goes on
from its last complete checkpoint.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import RESUMES, TRAINING_KEYS, Job, add_allow_change_flag, main
from cprec.config.recipe import Recipe

KEYS = (*TRAINING_KEYS, "continue_from", "branch", "data", "simulate")


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Trains the run of a recipe to its end, and prints where everything is."""
    from cprec.config.next_steps import after_pretraining
    from cprec.workflows.pretraining.prepare import open_corpus, preview_corpus, resolve_start
    from cprec.workflows.pretrain import pretrain, preview

    recipe = resolve_start(recipe)
    if options.dry_run:
        with preview_corpus(recipe, print_line) as corpus:
            preview(recipe, corpus, options.allow_change, print_line)
        return
    corpus = open_corpus(recipe, print_line)
    result = pretrain(recipe, corpus, options.allow_change, print_line)
    result.print_summary(recipe.mlflow.model, print_line)
    for line in after_pretraining(recipe, options, result.stable_checkpoint):
        print_line(line)


JOB = Job(run_job, __doc__, KEYS, add_allow_change_flag, again=RESUMES)

if __name__ == "__main__":
    sys.exit(main(JOB))

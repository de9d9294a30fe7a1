# PYTHON_ARGCOMPLETE_OK
"""Try models: rank by several models side by side, for the console's page Try it.

    python jobs/try_models.py my.yaml
    python jobs/try_models.py my.yaml --storage s3://bucket/runs --corpus s3://bucket/corpus
    python jobs/try_models.py my.yaml --dry-run

Each line of stdin is a question, and each line of stdout its answer, both JSON. It asks for no
GPU, and takes what the CPUs have to spare: a training on this machine goes first.
"""

import source_roots  # noqa: F401

import argparse
import os
import sys

from cluster.console import print_line
from cprec.config.command import MODEL_KEYS, RANKING_KEYS, Job, main, print_notice
from cprec.config.recipe import Recipe

KEYS = (*MODEL_KEYS, *RANKING_KEYS)
NICENESS = 10


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Answers questions until stdin ends."""
    if options.dry_run:
        print_line(f"would answer questions about {recipe.mlflow.model} on {recipe.corpus}")
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    os.nice(NICENESS)
    from cprec.workflows.console.try_models import answer_lines

    # What libraries print must not stand between answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    answer_lines(recipe, sys.stdin, answers, print_notice)


JOB = Job(run_job, __doc__, KEYS)

if __name__ == "__main__":
    sys.exit(main(JOB))

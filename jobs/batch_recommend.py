# PYTHON_ARGCOMPLETE_OK
"""Batch recommend: rank items for many users, and write the best of each as parquet.

    python jobs/batch_recommend.py my.yaml --model models:/cprec@champion --recommend.domain Games
    python jobs/batch_recommend.py my.yaml --model candidate --recommend.retrieve_k 50 --dry-run
    python jobs/batch_recommend.py my.yaml --model models:/cprec@champion \\
        --recommend.histories s3://shop/histories --recommend.candidates given

Without recommend.histories: all users of the domain in the corpus. The same command goes on after
a kill, and ranks nothing twice.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import MODEL_KEYS, RANKING_KEYS, RETRIEVAL_KEYS, WORKER_KEYS
from cprec.config.command import Job, add_model_flag, main
from cprec.config.recipe import Recipe

AGAIN = "the same command goes on with the blocks that are missing"
KEYS = (*MODEL_KEYS, *WORKER_KEYS, *RETRIEVAL_KEYS, *RANKING_KEYS, "recommend")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model."""
    add_model_flag(parser, stored_too=True)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Ranks what is missing, and prints where the rankings are."""
    from cprec.tracking.registry import Registry
    from cprec.workflows.batch_recommend import plan_batch, run_batch
    from cprec.workflows.evaluation.models import find_model

    registry = Registry.from_recipe(recipe)
    plan = plan_batch(recipe, registry, find_model(recipe, registry, options.model), print_line)
    if options.dry_run:
        print_line(f"would rank {plan.num_blocks:,} blocks into {plan.uri}")
        return
    summary = run_batch(plan, print_line)
    counts = summary["counts"]
    rejected = ", ".join(f"{name} {count:,}" for name, count in counts["not_ranked"].items())
    print_line(
        f"{counts['ranked']:,} of {counts['rows']:,} users ranked"
        + (f"; not ranked: {rejected} ({plan.uri}/quarantine.jsonl)" if rejected else "")
    )
    print_line(f"rankings: {summary['rankings']}")


JOB = Job(run_job, __doc__, KEYS, add_flags, again=AGAIN)

if __name__ == "__main__":
    sys.exit(main(JOB))

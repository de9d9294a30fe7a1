# PYTHON_ARGCOMPLETE_OK
"""Serve: rank on request, over HTTP, until Ctrl-C or SIGTERM.

    export CPREC_SERVE_TOKEN=$(python -c "import secrets; print(secrets.token_urlsafe(32))")
    python jobs/serve.py my.yaml --model models:/cprec@champion --recommend.domain Games
    python jobs/serve.py my.yaml --model champion --workers 2 --serve.gpus_per_replica 1
    python jobs/serve.py my.yaml --model champion --dry-run

    curl -H "Authorization: Bearer $CPREC_SERVE_TOKEN" -H "Content-Type: application/json" \\
        -d '{"history": ["item-1", "item-2"], "k": 5}' http://127.0.0.1:8000/rank

Once the alias names another version, that one is loaded beside the first, and takes over.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import MODEL_KEYS, RANKING_KEYS, RETRIEVAL_KEYS, WORKER_KEYS
from cprec.config.command import Job, add_model_flag, main
from cprec.config.recipe import Recipe

AGAIN = "the same command starts the server again"
KEYS = (*MODEL_KEYS, *WORKER_KEYS, *RETRIEVAL_KEYS, *RANKING_KEYS, "recommend", "serve")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model."""
    add_model_flag(parser, stored_too=True)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Serves the model."""
    from cprec.serving.access import read_token
    from cprec.tracking.registry import Registry
    from cprec.workflows.serve import plan_service, run_service

    token = read_token()
    plan = plan_service(recipe, Registry.from_recipe(recipe), options.model)
    print_line(plan.describe())
    if not options.dry_run:
        run_service(plan, token, print_line)


JOB = Job(run_job, __doc__, KEYS, add_flags, again=AGAIN)

if __name__ == "__main__":
    sys.exit(main(JOB))

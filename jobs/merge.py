# PYTHON_ARGCOMPLETE_OK
"""Merge: export a model as one plain directory, its adapter merged into the base.

    python jobs/merge.py --model models:/cprec@champion --out out/merged
    python jobs/merge.py --model models:/cprec@champion --out out/adapter --adapter
    python jobs/merge.py --model models:/cprec@champion --push shop/ranker

transformers, vLLM and other servers load such a directory, and --adapter's beside its base. Its
README.md is a model card. That of a hybrid model has its projector and item vectors in behaviour/.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cprec.config.command import MODEL_KEYS, Job, add_model_flag, main
from cprec.config.recipe import Recipe

KEYS = (*MODEL_KEYS, "model.license", "evaluate.domain")
HUB = (
    "push it to this repository of a hub, which is created, private, if it is not there; "
    "the token is HF_TOKEN's or that of `hf auth login`"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model, --out, --adapter and --push."""
    add_model_flag(parser, stored_too=True)
    where = "where the directory goes; nothing may be there"
    parser.add_argument("--out", metavar="URI", help=where)
    as_it_is = "export the adapter as it is, not merged"
    parser.add_argument("--adapter", action="store_true", help=as_it_is)
    parser.add_argument("--push", metavar="OWNER/NAME", help=HUB)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Exports the model, and prints where it is."""
    from cprec.downstream.stored_model import Form
    from cprec.tracking.registry import Registry
    from cprec.workflows.merge import export, plan_export
    from cprec.workflows.evaluation.models import find_model

    registry = Registry.from_recipe(recipe)
    model = find_model(recipe, registry, options.model)
    form = Form.ADAPTER if options.adapter else Form.MERGED
    plan = plan_export(recipe, registry, model, options.out, options.push, form)
    if options.dry_run:
        print_line(f"would export {model.checkpoint}; {plan.describe()}")
    else:
        export(plan)
        print_line(plan.describe())


JOB = Job(run_job, __doc__, KEYS, add_flags)

if __name__ == "__main__":
    sys.exit(main(JOB))

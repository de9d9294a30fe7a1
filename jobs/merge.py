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
from cprec.config.command import add_model_flag, main
from cprec.config.recipe import Recipe


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model, --out, --adapter and --push."""
    add_model_flag(parser, stored_too=True)
    parser.add_argument(
        "--out", metavar="URI", help="where the directory goes; nothing may be there"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="export the adapter as it is, not merged"
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="push it to this repository of a hub, which is created, private, if it is not there; "
        "the token is HF_TOKEN's or that of `hf auth login`",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Exports the model, and prints where it is."""
    # Imported late: so the command line is checked, and --help shown, without waiting for torch.
    from cprec.downstream.stored_model import Form
    from cprec.tracking.registry import Registry
    from cprec.workflows.merge import export, plan_export
    from cprec.workflows.models import find_model

    registry = Registry.from_recipe(recipe)
    model = find_model(recipe, registry, options.model)
    form = Form.ADAPTER if options.adapter else Form.MERGED
    plan = plan_export(recipe, registry, model, options.out, options.push, form)
    if options.dry_run:
        print_line(f"would export {model.checkpoint}; {plan.describe()}")
    else:
        export(plan)
        print_line(plan.describe())


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

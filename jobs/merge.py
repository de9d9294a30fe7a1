"""Merge: export a model as one plain directory, its adapter merged into the base.

    python jobs/merge.py --model models:/cprec@champion --out out/merged

transformers, vLLM and other servers that take no adapter load such a directory. That of a hybrid
model has its projector and item vectors beside it, in behaviour/.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cluster.storage import absolute_uri
from cprec.config.command import add_model_flag, main
from cprec.config.recipe import Recipe


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model and --out."""
    add_model_flag(parser, stored_too=True)
    parser.add_argument(
        "--out", required=True, metavar="URI", help="where the directory goes; nothing may be there"
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Merges the model and writes it."""
    # Imported late: so the command line is checked, and --help shown, without waiting for torch.
    from cprec.tracking.registry import Registry
    from cprec.workflows.merge import export_model, require_free, require_items
    from cprec.workflows.models import find_model

    model = find_model(recipe, Registry.from_recipe(recipe), options.model)
    out = absolute_uri(options.out)
    require_free(out)
    require_items(recipe, model)
    if options.dry_run:
        print_line(f"would merge {model.label} ({model.checkpoint}) into {model.base}, in {out}")
    else:
        export_model(recipe, model, out)
        print_line(f"{model.label} merged into {model.base}: {out}")


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))

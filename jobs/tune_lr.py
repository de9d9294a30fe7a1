"""Fine-tune on one domain, with a search of the learning rate, and register the best trial.

    python jobs/tune_lr.py --finetune.domain Games             CPRec: LoRA from the candidate
    python jobs/tune_lr.py --finetune.start fresh              LLaRA: LoRA from fresh weights
    python jobs/tune_lr.py --search.lrs 1e-5,1e-3 --search.draws 12 --search.stopper asha
        draws between two learning rates, with bad trials stopped early

Trials run on Ray Tune; the best learning rate is then trained with several seeds.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line, print_table
from cprec.config.command import RESUMES, main
from cprec.config.recipe import Recipe
from cprec.tracking.console_tables import trials_table
from cprec.tracking.registry import Registry
from cprec.workflows.finetune import plan_search, search_and_register


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Searches, and prints the trials and the winner."""
    registry = Registry.from_recipe(recipe)
    if options.dry_run:
        plan = plan_search(recipe, registry, print_line)
        print_line(
            f"learning rates {', '.join(f'{lr:g}' for lr in plan.lrs)}, {recipe.search.seeds} "
            f"seed(s) each; then the best with {recipe.search.winner_seeds}"
        )
        return
    result = search_and_register(recipe, registry, print_line)
    best = result.best
    print_table(trials_table(result.trials, result.winner_trials, best))
    print_line(
        f"best learning rate {result.lr:g}: HR@1 {best.hr1:.4f} on validation "
        f"after epoch {best.epoch} (seed {best.seed})"
    )
    if result.equal_lrs:
        print_line(
            f"the search cannot tell it from {', '.join(f'{lr:g}' for lr in result.equal_lrs)}: "
            "their HR@1 on validation are equal within noise; more finetune.validation_users or "
            "search.seeds would tell more"
        )
    print_line(f"registered {result.model} version {result.version}: {best.checkpoint}")
    print_line(f"plot: {result.plot_uri}")


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, again=RESUMES))

"""Fine-tune on one domain, searching the learning rate: trials on Ray Tune, the best rate with several seeds, the best of these registered.

python jobs/tune_lr.py --run cpt --finetune.domain Games                                 from the candidate (CPRec)
python jobs/tune_lr.py --run cpt --finetune.domain Games --finetune.start fresh          from nothing (LLaRA)
python jobs/tune_lr.py --search.lrs 1e-5,1e-3 --search.draws 12 --search.stopper asha    draws between two rates, bad ones stopped early
"""

import source_roots  # noqa: F401

import argparse
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cprec.config.command import main
from cprec.workflows.finetune import SearchResult, plan_search, search_and_register
from cprec.config.recipe import Recipe
from cprec.tracking.registry import Registry


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Search, and print the trials and the winner."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    registry = Registry.from_recipe(recipe)
    if options.dry_run:
        planned = plan_search(recipe, registry, say)
        say(
            f"{planned.name} on {planned.domain}, LoRA from {planned.start_checkpoint or 'fresh weights'}, in {planned.uri}"
        )
        rates = ", ".join(f"{rate:g}" for rate in planned.lrs)
        say(
            f"rates {rates}, {recipe.search.seeds} seed(s) each; then the best with {recipe.search.winner_seeds}"
        )
        return
    found = search_and_register(recipe, registry, say)
    console.print(trials_table(found))
    say(
        f"best learning rate {found.lr:g}: HR@1 {found.best.hr1:.4f} on validation after epoch {found.best.epoch} (seed {found.best.seed})"
    )
    say(f"registered {found.model} version {found.version}: {found.best.checkpoint}")
    say(f"plot: {found.plot_uri}")


def trials_table(found: SearchResult) -> Table:
    """The trials of the search, and the seeds of its best rate."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("learning rate", "seed", "HR@1 on validation", "best epoch", "epochs", ""):
        shown.add_column(name, justify="right")
    for trial in [
        *found.trials,
        *(seed for seed in found.winner_trials if seed not in found.trials),
    ]:
        mark = (
            "best"
            if trial == found.best
            else "diverged"
            if trial.diverged
            else "cut short"
            if trial.stopped
            else ""
        )
        shown.add_row(
            f"{trial.rate:g}",
            str(trial.seed),
            f"{trial.hr1:.4f}",
            str(trial.epoch),
            str(len(trial.history)),
            mark,
        )
    return shown


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__ or ""))

# PYTHON_ARGCOMPLETE_OK
"""Fine-tune on one domain with a learning-rate search, and register the best trial.

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
from cprec.config.command import MODEL_KEYS, RESUMES, WORKER_KEYS, Job, main
from cprec.config.recipe import Recipe

KEYS = (
    *(*MODEL_KEYS, *WORKER_KEYS, "finetune", "search", "model", "train"),
    *("baseline", "evaluate.domain", "evaluate.batch"),
)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Searches, and prints the trials and the winner."""
    from cprec.tracking.console_tables import trials_table
    from cprec.tracking.registry import Registry
    from cprec.workflows.finetune import plan_search, search_and_register

    registry = Registry.from_recipe(recipe)
    if options.dry_run:
        print_line(plan_search(recipe, registry, print_line).describe())
        return
    result = search_and_register(recipe, registry, print_line)
    print_table(trials_table(result.trials, result.winner_trials, result.best))
    for line in result.describe():
        print_line(line)


JOB = Job(run_job, __doc__, KEYS, again=RESUMES)

if __name__ == "__main__":
    sys.exit(main(JOB))

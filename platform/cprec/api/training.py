"""Pre-training from a program or a notebook: here, or in a process of its own."""

import time
from collections.abc import Collection

from cluster.console import Say
from cprec.api.background import BackgroundProcess
from cprec.api.run import Run
from cprec.config.recipe import Recipe
from cprec.runs.control.liveness import read_lease
from cprec.runs.run_records import recipe_run_uri

POLL_S = 0.5
"""Seconds between two looks whether a process has begun with its run."""


def pretrain(recipe: Recipe, allow_change: Collection[str] = (), *, say: Say = print) -> Run:
    """Pre-trains the run of a recipe to its end, and shows how it goes.

    Ctrl-C, or the interrupt of a notebook, saves a checkpoint and ends. The same call then goes on
    from the last checkpoint, and so it does after a crash. A run that is trained to its end is
    only reported and registered again.

    Args:
        recipe: What to train on what. A missing corpus of simulated shoppers is built first.
        allow_change: Keys that may differ from the run's first start.
        say: Takes lines of progress.

    Raises:
        UserError: Recipe, data, corpus or run are wrong, and can be mended.
        PlatformFault: Anything else; the same call goes on from the last checkpoint.
        KeyboardInterrupt: It was interrupted.
    """
    from cprec.workflows.pretrain import pretrain as train
    from cprec.workflows.pretraining.prepare import open_corpus, resolve_start

    recipe = resolve_start(recipe)
    try:
        result = train(recipe, open_corpus(recipe, say), allow_change, say)
    except KeyboardInterrupt:
        say("interrupted; the same call goes on from the last checkpoint")
        raise
    result.print_summary(recipe.mlflow.model, say)
    return Run(result.run_uri)


def start(recipe: Recipe, allow_change: Collection[str] = ()) -> Run:
    """Begins to pre-train in a process of its own, and returns the run once it is under way.

    The run goes on when this program ends; `Run.stop` ends it with a checkpoint. `Run.wait` waits
    for it, and `Run.log` returns what it has printed.

    Args:
        recipe: As for `pretrain`.
        allow_change: As for `pretrain`.

    Raises:
        UserError: As for `pretrain`, if it could not begin.
        PlatformFault: As for `pretrain`.
    """
    run_uri = recipe_run_uri(recipe)
    before = read_lease(run_uri)  # its owner may have had the number that the process gets
    process = BackgroundProcess(recipe, allow_change)
    try:
        while (
            (lease := read_lease(run_uri)) is None
            or lease.owner.pid != process.pid
            or (before is not None and lease.owner == before.owner)
        ):
            if process.has_ended():
                process.wait()
                break
            time.sleep(POLL_S)
    except BaseException:
        process.interrupt()  # nobody would have a handle of it
        raise
    return Run._of_process(run_uri, process)

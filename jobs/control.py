"""Ask a running job how it stands, or tell it what to do with its stable phase.

    python jobs/control.py --run NAME status | hold | release | anneal

hold: stay in the stable phase when it runs dry, waiting for new domains; release: no longer; anneal: end the stable phase at the next segment.
Needs the run's --storage; speaks to the run through it, so it works from any machine that can write there.
"""

import argparse
import sys

import source_roots  # noqa: F401
from rich.console import Console

from cluster.errors import RunError
from cluster.storage import absolute, join
from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.runs import control_channel

TIMEOUT_S = 60.0
VERBS: dict[str, control_channel.Verb] = {"hold": "hold", "release": "release", "anneal": "anneal"}


def job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Carry out one verb and print the run's state."""
    console = Console()
    run_uri = join(absolute(recipe.storage), recipe.run)
    verb = VERBS.get(options.word)
    if verb is not None and options.dry_run:
        console.print(f"would ask {recipe.run} to {verb}")
    elif verb is not None:
        console.print(
            f"{recipe.run} {control_channel.ask(run_uri, recipe.run, verb, TIMEOUT_S)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    state = control_channel.status(run_uri)
    if state is None:
        raise RunError(f"no run {recipe.run} below {absolute(recipe.storage)}")
    console.print(control_channel.describe(state), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(job, __doc__, words=("status", *VERBS)))

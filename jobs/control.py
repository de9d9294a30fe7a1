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
from cluster.storage import absolute_uri
from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.runs import control_channel
from cprec.runs.records import run_folder
from cprec.runs.status import describe_status, read_status

TIMEOUT_S = 60.0
ACTIONS: dict[str, control_channel.Action] = {
    "hold": "hold",
    "release": "release",
    "anneal": "anneal",
}


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Carry out one verb and print the run's state."""
    console = Console()
    run_uri = run_folder(absolute_uri(recipe.storage), recipe.run)
    verb = ACTIONS.get(options.action)
    if verb is not None and options.dry_run:
        console.print(f"would ask {recipe.run} to {verb}")
    elif verb is not None:
        console.print(
            f"{recipe.run} {control_channel.send_request(run_uri, recipe.run, verb, TIMEOUT_S)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    state = read_status(run_uri)
    if state is None:
        raise RunError(f"no run {recipe.run} below {absolute_uri(recipe.storage)}")
    console.print(describe_status(state), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, actions=("status", *ACTIONS)))

# PYTHON_ARGCOMPLETE_OK
"""Control: ask a running job how it stands, or tell it what to do with its stable phase.

    python jobs/control.py my.yaml --run cpt status
    python jobs/control.py --storage s3://bucket/runs --run cpt hold
    python jobs/control.py my.yaml --run cpt anneal --dry-run

hold: stay in the stable phase when it runs dry, and wait for new domains; release: stop holding;
anneal: end the stable phase at the next segment; stop: save a checkpoint and end, as Ctrl-C does.
Needs the run's --storage, through which it talks to the run: any machine that can write there will
do.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line
from cluster.errors import RunError
from cprec.config.command import Job, add_as_flag, main
from cprec.config.recipe import Recipe

KEYS = ("run", "storage")
REQUESTS = ("hold", "release", "anneal", "stop")
TIMEOUT_S = 60.0


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Sends the request, if one is given, and prints the state of the run."""
    from cluster.storage import absolute_uri
    from cprec.runs.control import control_channel
    from cprec.runs.control.status import describe_run
    from cprec.runs.records import run_folder

    storage = absolute_uri(recipe.storage)
    run_uri = run_folder(storage, recipe.run)
    action = options.action if options.action in REQUESTS else None
    if action is not None and options.dry_run:
        control_channel.require_running(run_uri, recipe.run)
        print_line(f"would ask {recipe.run} to {action}")
    elif action is not None:
        answer = control_channel.send_request(run_uri, recipe.run, action, TIMEOUT_S, options.by)
        print_line(f"{recipe.run} {answer}")
    description = describe_run(run_uri, recipe.run)
    if description is None:
        raise RunError(f"no run {recipe.run} below {storage}")
    print_line(description)


JOB = Job(run_job, __doc__, KEYS, add_as_flag, actions=("status", *REQUESTS))

if __name__ == "__main__":
    sys.exit(main(JOB))

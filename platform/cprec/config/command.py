"""What every job does around its one call: read the command line, say what went wrong in one message, end with the right exit code."""

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType

from cluster.errors import UserError
from cprec.config.cli import parse_arguments
from cprec.config.recipe import Recipe

DEMO_RECIPE = Path(__file__).resolve().parents[3] / "jobs" / "recipes" / "demo.yaml"

SUCCESS, USER_ERROR, FAULT, INTERRUPTED = 0, 1, 2, 130


def main(
    job: Callable[[Recipe, argparse.Namespace], None],
    description: str,
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
    actions: Collection[str] = (),
) -> int:
    """Run a job on the process's arguments. Returns its exit code: 0 done, 1 the user's error, 2 a fault, 130 interrupted and resumable.

    SIGTERM (as of `ray job stop`) is what Ctrl-C is; `cluster.ray_session` sees that it stays so under Ray.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        recipe, options = parse_arguments(
            sys.argv[1:], description, DEMO_RECIPE, add_flags, actions
        )
        job(recipe, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # the outermost frame: what nobody expected is a fault, shown whole, with its exit code
        traceback.print_exc()
        print(
            f"fault: {type(error).__name__}: {error}; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return FAULT
    return SUCCESS


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

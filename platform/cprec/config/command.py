"""What every job does around its one call: read the command line, report errors, set the exit code.

docs/operations/exit-codes.md lists the exit codes.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType

from cluster.errors import FAULT, UserError
from cprec.config.cli import parse_arguments
from cprec.config.recipe import Recipe
from cprec.config.secrets import redact

DEMO_RECIPE = Path(__file__).resolve().parents[3] / "jobs" / "recipes" / "demo.yaml"
"""Recipe of a job that is started without one."""

SUCCESS = 0
USER_ERROR = 1
INTERRUPTED = 130


def main(
    job: Callable[[Recipe, argparse.Namespace], None],
    description: str,
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
    actions: Collection[str] = (),
) -> int:
    """Runs a job on the arguments of this process.

    SIGTERM, which `ray job stop` sends, interrupts the job as Ctrl-C does. Ray would replace the
    handler; `cluster.ray_session` keeps it.

    Args:
        job: Takes the recipe and the flags.
        description: Text at the top of `--help`.
        add_flags: Adds the flags that only this job takes.
        actions: Names of what the job can do; the flag `action` holds the given one, or None.

    Returns:
        The exit code: 0 done, 1 the user's error, 2 a fault, 130 interrupted and resumable.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        recipe, options = parse_arguments(
            sys.argv[1:], description, DEMO_RECIPE, add_flags, actions, _print_notice
        )
        job(recipe, options)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # The outermost frame: whatever nobody expected is a fault, and is shown whole.
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        print(
            f"fault: {type(error).__name__}: {redact(str(error))}; "
            "the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return FAULT
    return SUCCESS


def add_allow_change_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --allow-change."""
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that may differ from the run's first start; may be repeated",
    )


def add_as_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --as."""
    parser.add_argument(
        "--as", dest="by", metavar="NAME", help="who does this, for the events that tell of it"
    )


def add_model_flag(
    parser: argparse.ArgumentParser, default: str | None = None, stored_too: bool = False
) -> None:
    """Adds --model; without a default it has to be given.

    Args:
        parser: The parser.
        default: The version that is meant without the flag.
        stored_too: Whether models that are not registered can be named too.
    """
    parser.add_argument(
        "--model",
        required=default is None,
        default=default,
        metavar="MODEL" if stored_too else "VERSION",
        help="a registered version: candidate (the newest of --run), champion, previous, a number, "
        "models:/NAME@champion or models:/NAME/3"
        + ("; base; or the URI of a checkpoint, an adapter or a merged model" * stored_too)
        + (f" [{default}]" if default else ""),
    )


def _print_notice(line: str) -> None:
    print(line, file=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

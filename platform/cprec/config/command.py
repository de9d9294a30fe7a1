"""What every job does around its one call: read the command line, report errors, set the exit code.

docs/operations/exit-codes.md lists the exit codes.
"""

import argparse
import faulthandler
import gc
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cluster.errors import (
    FAULT,
    INTERRUPTED,
    REFUSED,
    CprecError,
    GateRefusedError,
    UserError,
)
from cluster.processes.interruption import noting_signals
from cluster.processes.ray_threads import exit_process, is_ray_in_use
from cprec.config.cli import Job as Job
from cprec.config.cli import parse_arguments
from cprec.config.precision import slow_precision_notice
from cprec.config.secrets import redact

DEMO_RECIPE = Path(__file__).resolve().parents[3] / "jobs" / "recipes" / "demo.yaml"
"""Recipe of a job that is started without one."""

MODEL_KEYS = (
    *("run", "storage", "corpus", "corpus_version", "seed", "mlflow", "tiny", "data.held_out"),
    *("model.base", "model.revision", "model.precision", "model.max_tokens"),
)
"""What a job reads to find a model, and the items that it ranks."""

WORKER_KEYS = ("workers", "cluster", "train.cpus_per_worker", "train.gpus_per_worker")
"""What a job reads to compute on several workers without training."""

TRAINING_KEYS = (
    *(*MODEL_KEYS, *WORKER_KEYS),
    *("model", "schedule", "train", "checkpoint", "evaluate.text", "cost"),
)
"""What a job reads to pre-train, beside the data."""

RETRIEVAL_KEYS = ("retrieval", "baseline", "finetune.max_samples", "finetune.validation_users")
"""What a job reads to find candidates in a catalogue; the last three tell which SASRec it takes."""

RANKING_KEYS = ("data.max_history", "evaluate.domain", "evaluate.batch", "evaluate.compile")
"""What a job reads to rank for histories that it is given."""

ALLOCATIONS_PER_COLLECTION = 100_000
"""Objects after which Python's garbage collector looks for cycles.

With its default of 700, it takes a tenth of the time that a job needs for its imports, which make a
million objects that stay.
"""
DRY_RUN = "dry run: the inputs were checked, and nothing was written"
"""Last line of every dry run that found nothing wrong, on stderr."""

SUCCESS = 0
USER_ERROR = 1

RESUMES = "the same command goes on from the last checkpoint"
"""What a command of training does that is given again after an interruption or a fault."""


def main(job: Job) -> int:
    """Runs a job on the arguments of this process; returns the exit code."""

    def run() -> None:
        recipe, options = parse_arguments(sys.argv[1:], job, DEMO_RECIPE, print_notice)
        if job.computes and (notice := slow_precision_notice(recipe)):
            print_notice(notice)
        job.run(recipe, options)
        if options.dry_run:
            print_notice(DRY_RUN)

    return run_as_process(run, job.again)


def run_as_process(run: Callable[[], None], again: str) -> int:
    """Runs what a process is for, and reports how it ended.

    SIGTERM, which `ray job stop` sends, interrupts it as Ctrl-C does. Ray would replace the
    handler; `cluster.ray_session` keeps it.

    Args:
        run: What the process is for.
        again: What it does if it is started again after an interruption or a fault.

    Returns:
        The exit code: 0 done, 1 the user's error, 2 a fault, 3 refused, 130 interrupted. If a
        thread still uses Ray, the process ends with it here.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a crash of native code says where
    signal.signal(signal.SIGTERM, _interrupt)
    gc.set_threshold(ALLOCATIONS_PER_COLLECTION)
    with noting_signals(f"interrupted; {again}"):
        code = _run(run, again)
    if is_ray_in_use():
        exit_process(code)
    return code


def _run(run: Callable[[], None], again: str) -> int:
    """Runs what a process is for, and reports its error; returns the exit code."""
    try:
        run()
    except UserError as error:
        print(f"error: {redact(str(error))}\nsee {error.page}", file=sys.stderr)
        return USER_ERROR
    except GateRefusedError as error:
        print(f"refused: {redact(str(error))}\nsee {error.page}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # The outermost frame: whatever nobody expected is a fault, and is shown whole.
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        see = f"; see {error.page}" if isinstance(error, CprecError) else ""
        print(
            f"fault: {type(error).__name__}: {redact(str(error))}; {again}{see}",
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


def print_notice(line: str) -> None:
    """Prints a line to stderr."""
    print(line, file=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

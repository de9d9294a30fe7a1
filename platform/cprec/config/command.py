"""What every job does around its one call: read the command line, report errors, set the exit code.

docs/operations/exit-codes.md lists the exit codes.
"""

import argparse
import faulthandler
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from cluster.errors import FAULT, CprecError, UserError
from cluster.ray_threads import exit_process, is_ray_in_use
from cprec.config.cli import Job as Job
from cprec.config.cli import parse_arguments
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

RETRIEVAL_KEYS = ("retrieval", "baseline", "finetune.max_samples", "finetune.validation_users")
"""What a job reads to find candidates in a catalogue; the last three tell which SASRec it takes."""

RANKING_KEYS = ("data.max_history", "evaluate.domain", "evaluate.batch", "evaluate.compile")
"""What a job reads to rank for histories that it is given."""

SUCCESS = 0
USER_ERROR = 1
INTERRUPTED = 130

RESUMES = "the same command goes on from the last checkpoint"
"""What a command of training does that is given again after an interruption or a fault."""


def main(job: Job) -> int:
    """Runs a job on the arguments of this process.

    SIGTERM, which `ray job stop` sends, interrupts the job as Ctrl-C does. Ray would replace the
    handler; `cluster.ray_session` keeps it.

    Returns:
        The exit code: 0 done, 1 the user's error, 2 a fault, 130 interrupted. If a thread still
        uses Ray, the process ends with it here.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a crash of native code says where
    signal.signal(signal.SIGTERM, _interrupt)
    code = _run(job)
    if is_ray_in_use():
        exit_process(code)
    return code


def _run(job: Job) -> int:
    """Runs a job and reports its error; returns the exit code."""
    try:
        recipe, options = parse_arguments(sys.argv[1:], job, DEMO_RECIPE, print_notice)
        job.run(recipe, options)
    except UserError as error:
        print(f"error: {redact(str(error))}\nsee {error.page}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"interrupted; {job.again}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # The outermost frame: whatever nobody expected is a fault, and is shown whole.
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        see = f"; see {error.page}" if isinstance(error, CprecError) else ""
        print(
            f"fault: {type(error).__name__}: {redact(str(error))}; {job.again}{see}",
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

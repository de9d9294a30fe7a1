"""Where a run goes on. One that has trained never begins again by itself."""

from contextlib import suppress

from cluster.errors import RunError
from cluster.storage import exists, join
from cprec.runs import checkpoint
from cprec.runs.checkpoint import CheckpointName
from cprec.runs.control.attempts import ATTEMPTS_FOLDER, list_attempts
from cprec.runs.events import CheckpointSaved, RunFinished
from cprec.runs.json_lines import read_events, read_trace
from cprec.runs.records import AUDIT_FILE, EVENTS_FILE, PLAN_FILE, TRACE_FILE
from cprec.schedule.wsa import Phase


def find_last_checkpoint(run_uri: str) -> tuple[CheckpointName | None, list[str]]:
    """Finds the checkpoint that a run goes on from.

    Returns:
        (its name, what is wrong with each newer one). The name is None if the run has saved none.

    Raises:
        RunError: The run has saved checkpoints, and none of them is valid.
    """
    newest, problems = checkpoint.find_latest(run_uri)
    if newest is None and (sign := _find_sign_of_a_checkpoint(run_uri)):
        raise RunError(
            f"{join(run_uri, checkpoint.CHECKPOINTS)} holds no complete checkpoint, but {sign}: a "
            "run never starts over by itself; restore its checkpoints, or use another --run"
        )
    return newest, problems


def require_untrained(run_uri: str) -> None:
    """Checks that a run without a plan has never trained.

    Raises:
        RunError: Something in its folder says that it has.
    """
    sign = _find_sign_of_a_checkpoint(run_uri)
    if checkpoint.list_checkpoints(run_uri):
        sign = f"{join(run_uri, checkpoint.CHECKPOINTS)} holds checkpoints"
    elif sign is None and read_events(run_uri):
        sign = f"{join(run_uri, EVENTS_FILE)} says that it was started"
    if sign:
        raise RunError(
            f"{join(run_uri, PLAN_FILE)} is missing, but {sign}: a run never starts over by "
            "itself; restore the plan, or use another --run"
        )


def _find_sign_of_a_checkpoint(run_uri: str) -> str | None:
    """Returns what says that a run has saved a checkpoint, or None."""
    for event in reversed(read_events(run_uri)):
        if isinstance(event, CheckpointSaved | RunFinished):
            return f"{join(run_uri, EVENTS_FILE)} names {event.checkpoint}"
    for attempt in list_attempts(run_uri):
        if attempt.checkpoint is not None:
            return f"{join(run_uri, ATTEMPTS_FOLDER)} names {attempt.checkpoint}"
    if exists(join(run_uri, AUDIT_FILE)):
        return f"{join(run_uri, AUDIT_FILE)} says that it was trained to its end"
    with suppress(RunError):  # a damaged trace says nothing here
        phases = {row.phase for row in read_trace(run_uri)}
        if {Phase.STABLE, Phase.ANNEALING} <= phases:  # between them, a checkpoint is saved
            return f"{join(run_uri, TRACE_FILE)} holds steps of the annealing phase"
    return None

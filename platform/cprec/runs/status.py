"""How a run stands, and who trains it: status.json below <storage>/<run>/.

The controller rewrites the file every few seconds. From the driver's start until the workers have
begun, its state is "starting", beside what was known of the run before.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import RunError
from cluster.storage import exists, join, read_text, remove, write_text
from cprec.runs.records import STATUS_FILE, Owner, Status

HEARTBEAT_S = 2.0
"""Seconds between two writes of the status of a run that is under way."""

STALE_S = 20.0
"""A status that is older than this (seconds) means that nobody trains the run."""

MAX_SILENCE_S = 600.0
"""A driver whose process is known to live keeps its run through a silence of up to this (seconds).

It may be waiting for MLflow. There is an end to it because the OS may reuse its pid.
"""

CLAIM_WAIT_S = 0.5
"""Seconds that a driver waits after claiming a run.

Drivers that claim it at the same moment have all written by then, so all see the last claim.
"""


def current_owner() -> Owner:
    """Returns the owner that this process is."""
    return Owner(host=socket.gethostname(), pid=os.getpid(), token=uuid.uuid4().hex[:8])


def is_alive(owner: Owner) -> bool | None:
    """Returns whether an owner's process lives, or None where this process cannot know.

    It cannot know of a process on another host, nor of one that had its own pid: a container that
    was started again has the pids of before.
    """
    if owner.host != socket.gethostname() or owner.pid == os.getpid():
        return None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_status(run_uri: str) -> Status | None:
    """Reads the last status that a run wrote; None if it never wrote one."""
    uri = join(run_uri, STATUS_FILE)
    return Status.from_json(json.loads(read_text(uri))) if exists(uri) else None


def write_status(run_uri: str, status: Status) -> None:
    """Replaces the status of a run."""
    write_text(join(run_uri, STATUS_FILE), json.dumps(status.to_json()))


def is_running(status: Status | None, max_silence_s: float = STALE_S) -> bool:
    """Returns whether somebody trains the run that wrote this status.

    Args:
        status: Last status of the run; None if there is none.
        max_silence_s: Age (seconds) up to which the status counts.
    """
    if status is None or status.state == "ended" or time.time() - status.time > max_silence_s:
        return False
    return is_alive(status.owner) is not False


@contextmanager
def claim(run_uri: str, run: str) -> Iterator[None]:
    """Makes this process the owner of a run while a `with` block runs.

    If the block ends before the run's controller has written a status, the one of before is
    restored.

    Raises:
        RunError: Another process trains the run; names it.
    """
    me, before = current_owner(), read_status(run_uri)
    _require_unclaimed(before, me, run)
    known = before or Status(run=run, owner=me, state="starting")
    claimed = known.model_copy(update={"state": "starting", "time": time.time(), "owner": me})
    try:
        write_status(run_uri, claimed)
        time.sleep(CLAIM_WAIT_S)
        _require_unclaimed(read_status(run_uri), me, run)
        yield
    finally:
        now = read_status(run_uri)
        if now is not None and now.owner == me:
            if before is None:
                remove(join(run_uri, STATUS_FILE))
            else:
                write_status(run_uri, before)


def require_unclaimed(run_uri: str, run: str) -> None:
    """Raises RunError if a process trains the run; names it. Writes nothing."""
    _require_unclaimed(read_status(run_uri), current_owner(), run)


def _require_unclaimed(status: Status | None, claimant: Owner, run: str) -> None:
    if status is None or status.owner == claimant:
        return
    owner = status.owner
    known_to_live = is_alive(owner) is True
    if is_running(status, MAX_SILENCE_S if known_to_live else STALE_S):
        hint = "" if known_to_live else f" (if it died, wait {STALE_S:.0f} s)"
        raise RunError(
            f"the run {run} is being trained by process {owner.pid} on {owner.host}, "
            f"at {status.samples:,} samples; use another --run, or end that one{hint}"
        )


def describe_status(status: Status) -> str:
    """Returns a status for people: state, phase, ends of the phases, lr, samples by source."""
    state: str = status.state
    if not is_running(status) and state != "ended":
        state = f"not under way (last seen {time.time() - status.time:.0f} s ago)"
    if status.phase is None:  # its first start
        return f"{status.run}: {state}"
    held = ", held open" if status.hold else ""
    lines = [
        f"{status.run}: {state}, {status.phase}{held}, {status.samples:,} of "
        f"{status.annealing_end:,} samples (handed out: {status.issued:,})",
        f"W = {status.warmup_end:,}, S = {status.stable_end:,}, A = {status.annealing_end:,}; "
        f"lr {status.lr:.3g}; corpus version {status.corpus_version}",
        *(f"  {source}: {count:,} samples" for source, count in sorted(status.sources.items())),
    ]
    return "\n".join(lines)

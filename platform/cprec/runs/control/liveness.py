"""Whether a driver trains a run, judged by the newest lease of the run. Writes nothing."""

import os
import re
import socket
import time
from enum import StrEnum

from cluster.storage import join, list_names
from cprec.runs.record_files import read_record
from cprec.runs.records import LeaseRecord, Owner

LEASES_FOLDER = "leases"

RENEWAL_S = 2.0
"""Seconds between two renewals of a lease."""

STALE_S = 20.0
"""A lease that is not renewed for this long (seconds) is free."""

MAX_SILENCE_S = 600.0
"""A driver whose process is known to live keeps its run through a silence of up to this (seconds).

It may be paused, or its storage may be away. There is an end to it because the OS may reuse its
pid.
"""

WATCH_S = 3 * RENEWAL_S
"""Seconds for which a reader watches a lease that it cannot judge by its time."""

POLL_S = 0.5
"""Seconds between two looks at a lease that is watched."""

_LEASE_FILE = re.compile(r"[0-9]{6,18}\.json")


class Liveness(StrEnum):
    """Whether a driver trains a run, as far as one look at its lease can tell."""

    RUNNING = "running"
    GONE = "gone"
    UNKNOWN = "unknown"


def describe_owner(owner: Owner) -> str:
    """Returns an owner for people."""
    return f"process {owner.pid} on {owner.host}"


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


def read_lease(run_uri: str) -> LeaseRecord | None:
    """Reads the newest lease of a run; None if it never had one."""
    number = _newest_number(run_uri)
    if number is None:
        return None
    return read_record(lease_uri(run_uri, number), LeaseRecord)


def judge(record: LeaseRecord | None) -> Liveness:
    """Judges by one look at a lease whether its driver is at work."""
    if record is None or record.ended:
        return Liveness.GONE
    age = time.time() - record.time
    alive = is_alive(record.owner)
    if alive is False or (alive is None and age > MAX_SILENCE_S):
        return Liveness.GONE
    if alive and -STALE_S <= age <= MAX_SILENCE_S:
        return Liveness.RUNNING
    return Liveness.RUNNING if abs(age) <= STALE_S else Liveness.UNKNOWN


def watch(run_uri: str, record: LeaseRecord, seconds: float) -> bool:
    """Watches a lease for some time; returns whether it was renewed or replaced meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(POLL_S)
        if read_lease(run_uri) != record:
            return True
    return False


def find_liveness(run_uri: str) -> tuple[LeaseRecord | None, Liveness]:
    """Finds out whether a driver trains a run.

    A lease that cannot be judged by its time, because a clock is wrong or because its driver was
    silent for a while, is watched for `WATCH_S`.

    Returns:
        (the newest lease, the judgement).
    """
    record = read_lease(run_uri)
    liveness = judge(record)
    if liveness is Liveness.UNKNOWN and record is not None and watch(run_uri, record, WATCH_S):
        record = read_lease(run_uri)
        ended = record is None or record.ended
        return record, Liveness.GONE if ended else Liveness.RUNNING
    return record, liveness


def _newest_number(run_uri: str) -> int | None:
    names = list_names(join(run_uri, LEASES_FOLDER))
    numbers = [int(name.removesuffix(".json")) for name in names if _LEASE_FILE.fullmatch(name)]
    return max(numbers, default=None)


def lease_uri(run_uri: str, number: int) -> str:
    """Returns the file (URI) of a lease."""
    return join(run_uri, LEASES_FOLDER, f"{number:06d}.json")

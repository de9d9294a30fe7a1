"""The lease of a run: which driver trains it. One small file per start below <storage>/<run>/.

    leases/<number>.json   created by the driver that starts, if nobody has the number yet; the same
                           driver renews it every few seconds, until it ends

The newest number holds the run. All that a driver and its controller write is checked against it,
so a process that was paused, or cut off, stops as soon as another one has taken over. Nobody
compares the clocks of two machines: a lease is free if it was ended, if its process is known to be
dead, or if it was watched for a while and nobody renewed it
(docs/decisions/006-requests-through-storage.md).
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum

from cluster.console import Say
from cluster.errors import RunError
from cluster.storage import create_text, exists, join, list_names, read_text, write_text
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


class LeaseLostError(RunError):
    """Another process has taken over the run that this one trained."""


class Liveness(StrEnum):
    """Whether a driver trains a run, as far as one look at its lease can tell."""

    RUNNING = "running"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Lease:
    """The right to write a run's records, which processes of the run hand to each other.

    Attributes:
        run_uri: Folder of the run.
        run: Name of the run.
        number: Number of the lease; a higher one makes this one void.
        owner: The driver that holds it.
    """

    run_uri: str
    run: str
    number: int
    owner: Owner

    def is_lost(self) -> bool:
        """Returns whether another driver has taken over the run."""
        return exists(_lease_uri(self.run_uri, self.number + 1))

    def require(self) -> None:
        """Checks that the run may still be written.

        Raises:
            LeaseLostError: Another driver has taken over; names it.
        """
        if self.is_lost():
            newest = read_lease(self.run_uri)
            taken_by = "" if newest is None else f" by {describe_owner(newest.owner)}"
            raise LeaseLostError(
                f"the run {self.run} was taken over{taken_by}, because this process was silent for "
                "too long; it stops, and writes nothing more"
            )


@dataclass(frozen=True)
class HeldLease:
    """A lease while its driver renews it.

    Attributes:
        lease: The lease.
        lost: Set once another driver has taken over.
    """

    lease: Lease
    lost: threading.Event


def current_owner() -> Owner:
    """Returns the owner that this process is."""
    return Owner(host=socket.gethostname(), pid=os.getpid(), token=uuid.uuid4().hex[:8])


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
    return read_record(_lease_uri(run_uri, number), LeaseRecord)


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


def require_unclaimed(run_uri: str, run: str) -> None:
    """Raises RunError if a process trains a run for certain; names it. Writes nothing."""
    record, liveness = find_liveness(run_uri)
    if liveness is Liveness.RUNNING:
        raise _refusal(run, record)


@contextmanager
def claim(run_uri: str, run: str, corpus_uri: str, say: Say) -> Iterator[HeldLease]:
    """Makes this process the driver of a run while a `with` block runs.

    A thread renews the lease meanwhile, whatever the other threads of the process do.

    Args:
        run_uri: Folder of the run.
        run: Name of the run.
        corpus_uri: Folder of the corpus that the run trains on.
        say: Takes one line, if the driver before may still be at work and has to be watched.

    Raises:
        RunError: Another process trains the run; names it.
    """
    newest = read_lease(run_uri)
    _require_free(run_uri, run, newest, say)
    lease = Lease(run_uri, run, 1 if newest is None else newest.number + 1, current_owner())
    record = LeaseRecord(number=lease.number, owner=lease.owner, run=run, corpus=corpus_uri)
    if not _create(lease, record):
        raise _refusal(run, read_lease(run_uri))
    held, stop = HeldLease(lease, threading.Event()), threading.Event()
    thread = threading.Thread(target=_renew_until, args=(stop, held, record), daemon=True)
    thread.start()
    try:
        yield held
    finally:
        stop.set()
        thread.join(STALE_S)  # a storage that hangs must not keep the process
        with suppress(Exception):  # then others find out that the lease is not renewed
            if not lease.is_lost():
                _write(lease, record.model_copy(update={"ended": True}))


def _require_free(run_uri: str, run: str, newest: LeaseRecord | None, say: Say) -> None:
    """Checks that nobody trains a run, as long as it takes to know; raises RunError."""
    if newest is None or newest.ended:
        return
    alive = is_alive(newest.owner)
    if alive is False:
        return
    if alive and judge(newest) is Liveness.RUNNING:
        raise _refusal(run, newest)
    say(
        f"watching for {STALE_S:.0f} s whether {describe_owner(newest.owner)} still trains "
        f"the run {run}"
    )
    if watch(run_uri, newest, STALE_S):
        renewed = read_lease(run_uri)
        if renewed is None or not renewed.ended:
            raise _refusal(run, renewed)


def _refusal(run: str, record: LeaseRecord | None) -> RunError:
    owner = "another process" if record is None else describe_owner(record.owner)
    return RunError(
        f"the run {run} is being trained by {owner}; use another --run, or end that one"
    )


def _create(lease: Lease, record: LeaseRecord) -> bool:
    """Creates the file of a lease; returns whether this process did."""
    uri = _lease_uri(lease.run_uri, lease.number)
    if create_text(uri, json.dumps(record.to_json())):
        return True
    # The answer to a put that succeeded may have been lost, and the put repeated.
    return LeaseRecord.from_json(json.loads(read_text(uri))).owner == lease.owner


def _write(lease: Lease, record: LeaseRecord) -> None:
    renewed = record.model_copy(update={"time": time.time()})
    write_text(_lease_uri(lease.run_uri, lease.number), json.dumps(renewed.to_json()))


def _renew_until(stop: threading.Event, held: HeldLease, record: LeaseRecord) -> None:
    """Renews a lease every RENEWAL_S until it is told to stop, or the lease is lost."""
    while not stop.wait(RENEWAL_S):
        with suppress(Exception):  # the storage is away for a moment: try again
            if held.lease.is_lost():
                held.lost.set()
                return
            _write(held.lease, record)


def _newest_number(run_uri: str) -> int | None:
    names = list_names(join(run_uri, LEASES_FOLDER))
    numbers = [int(name.removesuffix(".json")) for name in names if _LEASE_FILE.fullmatch(name)]
    return max(numbers, default=None)


def _lease_uri(run_uri: str, number: int) -> str:
    return join(run_uri, LEASES_FOLDER, f"{number:06d}.json")

"""The lease of a run: which driver trains it. One small file per start below <storage>/<run>/.

    leases/<number>.json   created by the driver that starts, if nobody has the number yet; the same
                           driver renews it every few seconds, until it ends

The newest number holds the run. Driver, controller and workers write through their lease, which
fails once another driver has taken over (`cprec.runs.control.fence`). Nobody compares the clocks of
two machines: a lease is free if it was ended, if its process is known to be dead, or if it was
watched for a while and nobody renewed it (docs/decisions/006-requests-through-storage.md).
"""

import errno
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster import local_files
from cluster.conditional import StoredObject
from cluster.console import Say
from cluster.errors import RunError
from cluster.storage import (
    create_text,
    exists,
    is_remote,
    join,
    read_bytes_if_exists,
    remove,
    write_text,
)
from cluster.storage_errors import name_errors
from cprec.runs.control import fence, liveness
from cprec.runs.control.liveness import LEASES_FOLDER, Liveness, describe_owner, lease_uri
from cprec.runs.records import (
    EVENTS_FILE,
    PLAN_FILE,
    STATUS_FILE,
    TRACE_FILE,
    LeaseRecord,
    Owner,
)


class LeaseLostError(RunError):
    """Another process has taken over the run that this one trained."""


@dataclass(frozen=True)
class Lease:
    """The right to write a run's files, which processes of the run hand to each other.

    It is a `RunWriter`. Every write raises LeaseLostError once another driver has taken over, even
    if it had begun before.

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
        return exists(lease_uri(self.run_uri, self.number + 1))

    def require(self) -> None:
        """Checks that the run may still be written.

        Raises:
            LeaseLostError: Another driver has taken over; names it.
        """
        if self.is_lost():
            newest = liveness.read_lease(self.run_uri)
            taken_by = "" if newest is None else f" by {describe_owner(newest.owner)}"
            raise LeaseLostError(
                f"the run {self.run} was taken over{taken_by}, because this process was silent for "
                "too long; it stops, and writes nothing more"
            )

    def replace(self, uri: str, content: bytes) -> None:
        """Writes a text file of the run atomically and durably."""
        if is_remote(uri):
            fence.replace_tagged(uri, lambda: content, self.number, self.require)
            return
        with self._naming_the_loss():
            fence.replace_file(uri, content, self.staging, self.require)

    @contextmanager
    def appending(self, uri: str) -> Iterator[Path]:
        """Yields a path through which lines can be appended to a file of the run, on a disk."""
        with self._naming_the_loss():
            link = fence.link_file(uri, self.staging)
            self.require()
            yield link

    def remove(self, uri: str) -> None:
        """Removes what is at a URI of the run."""
        if is_remote(uri):  # no store removes a folder on a condition
            self.require()
            remove(uri)
            return
        with self._naming_the_loss():
            fence.remove_path(uri, self.staging, self.require)

    def adopt(self) -> None:
        """Makes every write void that the drivers before have begun; called once, after a claim.

        Files that are appended to become other files on a disk. On a store all become other
        objects; one that does not exist is made, of white space, so that nobody else makes it.
        """
        if not is_remote(self.run_uri):
            fence.revoke_older(join(self.run_uri, LEASES_FOLDER), self.number)
        for name in (PLAN_FILE, STATUS_FILE, EVENTS_FILE, TRACE_FILE):
            uri = join(self.run_uri, name)
            if is_remote(uri):
                read = partial(_read_or_empty, uri)
                fence.replace_tagged(uri, read, self.number, self.require)
            elif (content := read_bytes_if_exists(uri)) is not None:
                self.replace(uri, content)

    @property
    def staging(self) -> Path:
        """The staging folder of the lease, on a disk."""
        leases = join(self.run_uri, LEASES_FOLDER)
        return fence.staging_folder(leases, self.number, self.owner.token)

    def discard_staging(self) -> None:
        """Makes this lease's own writes void."""
        if not is_remote(self.run_uri):
            shutil.rmtree(self.staging, ignore_errors=True)

    @contextmanager
    def _naming_the_loss(self) -> Iterator[None]:
        """Raises LeaseLostError in place of the error of a write whose staging folder is gone."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE) or self.staging.exists():
                raise
            self.require()
            raise LeaseLostError(
                f"the run {self.run} is no longer this process's: {self.staging} is gone; "
                "it stops, and writes nothing more"
            ) from error


def _read_or_empty(uri: str) -> bytes:
    return read_bytes_if_exists(uri) or b""


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


def require_unclaimed(run_uri: str, run: str) -> None:
    """Raises RunError if a process trains a run for certain; names it. Writes nothing."""
    record, judgement = liveness.find_liveness(run_uri)
    if judgement is Liveness.RUNNING:
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
    newest = liveness.read_lease(run_uri)
    _require_free(run_uri, run, newest, say)
    lease = Lease(run_uri, run, 1 if newest is None else newest.number + 1, current_owner())
    record = LeaseRecord(number=lease.number, owner=lease.owner, run=run, corpus=corpus_uri)
    if not _create(lease, record):
        lease.discard_staging()
        raise _refusal(run, liveness.read_lease(run_uri))
    held, stop = HeldLease(lease, threading.Event()), threading.Event()
    thread = threading.Thread(target=_renew_until, args=(stop, held, record), daemon=True)
    thread.start()
    try:
        if newest is not None:
            lease.adopt()
        if is_remote(run_uri) and not _honours_conditions(lease, record):
            say(
                f"{run_uri}: this store lets puts through whose condition (If-Match, "
                "If-None-Match) does not hold: start no second driver of this run"
            )
        yield held
    finally:
        stop.set()
        thread.join(liveness.STALE_S)  # a storage that hangs must not keep the process
        with suppress(Exception):  # then others find out that the lease is not renewed
            if not lease.is_lost():
                _write(lease, record.model_copy(update={"ended": True}))
        lease.discard_staging()


def _require_free(run_uri: str, run: str, newest: LeaseRecord | None, say: Say) -> None:
    """Checks that nobody trains a run, as long as it takes to know; raises RunError."""
    if newest is None or newest.ended:
        return
    alive = liveness.is_alive(newest.owner)
    if alive is False:
        return
    if alive and liveness.judge(newest) is Liveness.RUNNING:
        raise _refusal(run, newest)
    say(
        f"watching for {liveness.STALE_S:.0f} s whether {describe_owner(newest.owner)} "
        f"still trains the run {run}"
    )
    if liveness.watch(run_uri, newest, liveness.STALE_S):
        renewed = liveness.read_lease(run_uri)
        if renewed is None or not renewed.ended:
            raise _refusal(run, renewed)


def _refusal(run: str, record: LeaseRecord | None) -> RunError:
    owner = "another process" if record is None else describe_owner(record.owner)
    return RunError(
        f"the run {run} is being trained by {owner}; use another --run, or end that one"
    )


def _create(lease: Lease, record: LeaseRecord) -> bool:
    """Creates the staging folder and the file of a lease; returns whether this process did."""
    uri = lease_uri(lease.run_uri, lease.number)
    if not is_remote(uri):
        with name_errors(uri):
            local_files.make_folder(lease.staging)
    return create_text(uri, json.dumps(record.to_json()))


def _honours_conditions(lease: Lease, record: LeaseRecord) -> bool:
    """Returns whether a store refuses puts whose condition does not hold."""
    uri, content = lease_uri(lease.run_uri, lease.number), json.dumps(record.to_json())
    # Not the same content: that would count as created by a put whose answer was lost.
    replaced = StoredObject(uri).replace(content.encode(), '"none"')
    return not (replaced or create_text(uri, f"{content} "))


def _write(lease: Lease, record: LeaseRecord) -> None:
    renewed = record.model_copy(update={"time": time.time()})
    write_text(lease_uri(lease.run_uri, lease.number), json.dumps(renewed.to_json()))


def _renew_until(stop: threading.Event, held: HeldLease, record: LeaseRecord) -> None:
    """Renews a lease every RENEWAL_S until it is told to stop, or the lease is lost."""
    while not stop.wait(liveness.RENEWAL_S):
        with suppress(Exception):  # the storage is away for a moment: try again
            if held.lease.is_lost():
                held.lost.set()
                return
            _write(held.lease, record)

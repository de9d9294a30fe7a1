"""How a run stands: status.json below <storage>/<run>/, and what people are told of it.

The controller rewrites the file every few seconds while workers train. Whether anybody trains the
run is told by its lease (`cprec.runs.control.lease`), which the driver renews from start to end.
"""

import json
import time

from cluster.storage import join
from cprec.runs.control.fence import RunWriter
from cprec.runs.control.lease import STALE_S, WATCH_S, Liveness, describe_owner, find_liveness
from cprec.runs.record_files import read_record
from cprec.runs.records import STATUS_FILE, LeaseRecord, Status
from cprec.schedule.wsa import Phase


def read_status(run_uri: str) -> Status | None:
    """Reads the last status that a run wrote; None if it never wrote one.

    Raises:
        RunError: It is damaged.
    """
    return read_record(join(run_uri, STATUS_FILE), Status, blank_is_missing=True)


def write_status(run_uri: str, status: Status, writer: RunWriter) -> None:
    """Replaces the status of a run."""
    writer.replace(join(run_uri, STATUS_FILE), json.dumps(status.to_json()).encode())


def is_starting(lease: LeaseRecord | None, status: Status | None) -> bool:
    """Returns whether the driver that holds a lease has not written a status yet."""
    return lease is not None and (status is None or status.lease != lease.number)


def describe_run(run_uri: str, run: str) -> str | None:
    """Describes how a run stands, for people; None if it never started.

    Looks for some seconds where it cannot tell at once whether the run is under way.
    """
    lease, liveness = find_liveness(run_uri)
    status = read_status(run_uri)
    if lease is None and status is None:
        return None
    state = describe_state(lease, liveness, status)
    if status is None or status.phase is None:  # its first start
        return f"{run}: {state}"
    held = ", held open" if status.hold else ""
    lines = [
        f"{run}: {state}, {status.phase}{held}, {status.samples:,} of "
        f"{status.annealing_end:,} samples (handed out: {status.issued:,})",
        f"W = {status.warmup_end:,}, S = {status.stable_end:,}, A = {status.annealing_end:,}; "
        f"lr {status.lr:.3g}; corpus version {status.corpus_version}",
        *(f"  {source}: {count:,} samples" for source, count in sorted(status.sources.items())),
    ]
    return "\n".join(lines)


def describe_state(lease: LeaseRecord | None, liveness: Liveness, status: Status | None) -> str:
    """Describes what a run does, and what is not known of it."""
    if lease is None or liveness is Liveness.GONE:
        return _describe_end(lease, status)
    silence = time.time() - lease.time
    if liveness is Liveness.UNKNOWN:
        return (
            f"not known whether it is under way: nothing heard of {describe_owner(lease.owner)} "
            f"for {WATCH_S:.0f} s, and its last sign of life is {_describe_age(silence)}"
        )
    if silence > STALE_S:
        return (
            f"not known whether it goes on: {describe_owner(lease.owner)} lives, but its last "
            f"sign of life is {_describe_age(silence)}"
        )
    if is_starting(lease, status) or status is None:
        return "starting" if status is None else "starting again; when it was last heard of"
    if status.state == "ended":
        return "finishing (audit, report, registration)"
    # Both times are of the run's own machines; the status is late while the controller is busy.
    age = time.time() - status.time
    return status.state if age <= STALE_S else f"{status.state} as of {age:.0f} s ago"


def _describe_end(lease: LeaseRecord | None, status: Status | None) -> str:
    """Describes a run that nobody trains."""
    if status is not None and status.state == "ended" and not _died_in_start(lease, status):
        return "ended" if status.phase is Phase.DONE else "stopped"
    if lease is not None and lease.ended:
        return "not under way (its last start ended before the first step)"
    times = [record.time for record in (lease, status) if record is not None]
    return f"not under way (last seen {_describe_age(time.time() - max(times))})"


def _died_in_start(lease: LeaseRecord | None, status: Status) -> bool:
    return is_starting(lease, status) and lease is not None and not lease.ended


def _describe_age(seconds: float) -> str:
    """Describes how long ago something was, by a clock that may be wrong."""
    if seconds < -STALE_S:
        return f"{-seconds:,.0f} s in the future by its clock"
    return f"{max(seconds, 0.0):,.0f} s ago"

"""How other processes reach a run: requests and answers as small files below <storage>/<run>/, so that a laptop, another cluster or a restarted
driver can speak to it, and nothing is lost when nobody listens.

    requests/<id>.json   {"do": "look" | "hold" | "release" | "anneal"}, removed when it is answered
    status.json          the run's state, rewritten every few seconds; with the latest answers, and an owner. From the driver's start until the
                         workers have begun it is "starting", beside what was last known
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.errors import RunError
from cluster.storage import exists, join, list_names, read_text, remove, write_text

REQUESTS, STATUS = "requests", "status.json"
STALE_S = 20.0
"""A status this old means that nobody runs the run: it is written every BEAT_S."""
HEARTBEAT_S = 2.0
MAX_SILENCE_S = 600.0
"""A driver that is still there has its run even if it is silent for so long: it may wait for MLflow. Not for ever: a pid comes to be another's."""
CLAIM_WAIT_S = 0.5
"""Of drivers that claim a run at the same moment, each has written by then, and all see the last one."""
STARTING = "starting"
MAX_ANSWERS = 20

Action = Literal["look", "hold", "release", "anneal"]


@dataclass(frozen=True)
class Owner:
    """Who trains a run: a driver process."""

    host: str
    pid: int
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), uuid.uuid4().hex[:8])

    def is_alive(self) -> bool | None:
        """Whether the process is there; None where nobody knows: on another host, or where this process has its pid (a container started again)."""
        if self.host != socket.gethostname() or self.pid == os.getpid():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def read_status(run_uri: str) -> dict[str, Any] | None:
    """The last state that a run wrote; None if it never did."""
    where = join(run_uri, STATUS)
    return json.loads(read_text(where)) if exists(where) else None


def is_running(status: Mapping[str, Any] | None, max_silence_s: float = STALE_S) -> bool:
    """Whether somebody trains the run that wrote this state, at most so long ago."""
    if status is None or status["state"] == "ended" or time.time() - status["time"] > max_silence_s:
        return False
    return Owner(**status["owner"]).is_alive() is not False


@contextmanager
def claim(run_uri: str, run: str) -> Iterator[None]:
    """Make a run this process's before its controller can say so; one that did not come to train leaves the state as it was.

    Raises RunError naming the owner of a run that somebody else trains.
    """
    me, before = Owner.this_process(), read_status(run_uri)
    _require_unclaimed(before, me, run)
    known = {"run": run, "samples": 0, "answers": {}, **(before or {})}
    try:
        write_text(
            join(run_uri, STATUS),
            json.dumps({**known, "state": STARTING, "time": time.time(), "owner": asdict(me)}),
        )
        time.sleep(CLAIM_WAIT_S)
        _require_unclaimed(read_status(run_uri), me, run)
        yield
    finally:
        now = read_status(run_uri)
        if now is not None and now["owner"] == asdict(me):
            if before is None:
                remove(join(run_uri, STATUS))
            else:
                write_text(join(run_uri, STATUS), json.dumps(before))


def _require_unclaimed(status: Mapping[str, Any] | None, claimant: Owner, run: str) -> None:
    if status is None or status["owner"] == asdict(claimant):
        return
    owner = Owner(**status["owner"])
    there = owner.is_alive() is True
    if is_running(status, MAX_SILENCE_S if there else STALE_S):
        raise RunError(
            f"the run {run} is being trained by process {owner.pid} on {owner.host}, at {status['samples']:,} samples; "
            f"use another --run, or end that one{'' if there else f' (if it died, wait {STALE_S:.0f} s)'}"
        )


def send_request(run_uri: str, run: str, action: Action, timeout_s: float) -> str:
    """Put a request to a run and wait for its answer.

    Raises RunError when the run is not under way, or does not answer in time; a request that is not waited for to its end is taken back.
    """
    if not is_running(read_status(run_uri)):
        raise RunError(
            f"the run {run} is not under way ({run_uri}); start it with jobs/cpt.py --run {run}"
        )
    identity = uuid.uuid4().hex[:12]
    place = join(run_uri, REQUESTS, f"{identity}.json")
    end = time.monotonic() + timeout_s
    try:
        write_text(place, json.dumps({"do": action}))
        while time.monotonic() < end:
            if (state := read_status(run_uri)) is not None and identity in state["answers"]:
                return str(state["answers"][identity])
            time.sleep(0.5)
    finally:  # also after Ctrl-C: what nobody waits for any more is not to be done
        remove(place)
    raise RunError(
        f"the run {run} did not answer within {timeout_s:.0f} s; it may be starting or saving: try again"
    )


class ControlChannel:
    """The run's side: takes requests, keeps answers, writes the state."""

    def __init__(self, run_uri: str, owner: Owner) -> None:
        self._run_uri, self._owner = run_uri, owner
        self._answers: dict[str, str] = {}
        self._last_write = 0.0

    def pending_requests(self) -> list[tuple[str, Action]]:
        """What is asked and not answered yet, as (id, verb)."""
        found = []
        for name in list_names(join(self._run_uri, REQUESTS)):
            if name.endswith(".json") and name.removesuffix(".json") not in self._answers:
                found.append(
                    (
                        name.removesuffix(".json"),
                        json.loads(read_text(join(self._run_uri, REQUESTS, name)))["do"],
                    )
                )
        return found

    def answer(self, request_id: str, text: str) -> None:
        """Answer a request; whoever asked sees it with the next state."""
        self._answers = dict([*self._answers.items(), (request_id, text)][-MAX_ANSWERS:])
        remove(join(self._run_uri, REQUESTS, f"{request_id}.json"))

    def is_due(self) -> bool:
        """Whether it is time to look at requests and to write the state."""
        return time.monotonic() - self._last_write >= HEARTBEAT_S

    def write_status(self, values: Mapping[str, Any]) -> None:
        """Write the state."""
        self._last_write = time.monotonic()
        write_text(
            join(self._run_uri, STATUS),
            json.dumps(
                {
                    "time": time.time(),
                    "owner": asdict(self._owner),
                    "answers": self._answers,
                    **values,
                }
            ),
        )


def describe_status(status: Mapping[str, Any]) -> str:
    """A run's state for people."""
    now = (
        status["state"]
        if is_running(status) or status["state"] == "ended"
        else f"not under way (last seen {time.time() - status['time']:.0f} s ago)"
    )
    if "phase" not in status:  # its first start
        return f"{status['run']}: {now}"
    held = ", held open" if status["hold"] else ""
    sources = "\n".join(
        f"  {source}: {count:,} samples" for source, count in sorted(status["sources"].items())
    )
    return (
        f"{status['run']}: {now}, {status['phase']}{held}, {status['samples']:,} of {status['A']:,} samples (handed out: {status['issued']:,})\n"
        f"W = {status['W']:,}, S = {status['S']:,}, A = {status['A']:,}; rate {status['rate']:.3g}; corpus version {status['corpus_version']}\n{sources}"
    )


def notify_runs(storage: str, corpus_uri: str, timeout_s: float) -> list[str]:
    """Tell every running job below a storage that reads this corpus to look at it. One line for each: what it takes up, and at which sample."""
    said = []
    for run in list_names(storage):
        state = read_status(join(storage, run))
        if state is None or state.get("corpus") != corpus_uri or not is_running(state):
            continue
        try:
            said.append(f"{run} {send_request(join(storage, run), run, 'look', timeout_s)}")
        except RunError as error:
            said.append(
                f"{run} will look at the corpus when its next segment is handed out ({error})"
            )
    return said

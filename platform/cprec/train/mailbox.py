"""How other processes reach a run: requests and answers as small files below <storage>/<run>/, so that a laptop, another cluster or a restarted
driver can speak to it, and nothing is lost when nobody listens.

    requests/<id>.json   {"do": "look" | "hold" | "release" | "anneal"}, removed when it is answered
    status.json          the run's state, rewritten every few seconds; with the latest answers, and an owner
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster.errors import RunError
from cluster.storage import exists, join, names, read_text, remove, write_text

REQUESTS, STATUS = "requests", "status.json"
STALE_S = 20.0
"""A status this old means that nobody runs the run: it is written every BEAT_S."""
BEAT_S = 2.0
KEPT_ANSWERS = 20

Verb = Literal["look", "hold", "release", "anneal"]


@dataclass(frozen=True)
class Owner:
    """Who trains a run: a driver process."""

    host: str
    pid: int
    token: str

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), uuid.uuid4().hex[:8])

    def gone(self) -> bool:
        """Whether it is known that the process is no more: it ran on this host and its pid is free."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def status(run_uri: str) -> dict[str, Any] | None:
    """The last state that a run wrote; None if it never did."""
    where = join(run_uri, STATUS)
    return json.loads(read_text(where)) if exists(where) else None


def alive(state: Mapping[str, Any] | None) -> bool:
    """Whether somebody trains the run that wrote this state."""
    if state is None or state["state"] == "ended" or time.time() - state["time"] > STALE_S:
        return False
    return not Owner(**state["owner"]).gone()


def claim(run_uri: str, run: str) -> None:
    """Refuse a run that somebody else trains. Raises RunError naming the owner."""
    state = status(run_uri)
    if alive(state) and state is not None:
        owner = state["owner"]
        raise RunError(
            f"the run {run} is being trained by process {owner['pid']} on {owner['host']}, at {state['samples']:,} samples; "
            f"use another --run, or end that one (if it died, wait {STALE_S:.0f} s)"
        )


def ask(run_uri: str, run: str, verb: Verb, timeout_s: float) -> str:
    """Put a request to a run and wait for its answer.

    Raises RunError when the run is not under way, or does not answer in time; the request is then taken back.
    """
    if not alive(status(run_uri)):
        raise RunError(f"the run {run} is not under way ({run_uri}); start it with jobs/cpt.py --run {run}")
    identity = uuid.uuid4().hex[:12]
    place = join(run_uri, REQUESTS, f"{identity}.json")
    write_text(place, json.dumps({"do": verb}))
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if (state := status(run_uri)) is not None and identity in state["answers"]:
            return str(state["answers"][identity])
        time.sleep(0.5)
    remove(place)
    raise RunError(f"the run {run} did not answer within {timeout_s:.0f} s; it may be starting or saving: try again")


class Desk:
    """The run's side: takes requests, keeps answers, writes the state."""

    def __init__(self, run_uri: str, owner: Owner) -> None:
        self._run_uri, self._owner = run_uri, owner
        self._answers: dict[str, str] = {}
        self._written = 0.0

    def requests(self) -> list[tuple[str, Verb]]:
        """What is asked and not answered yet, as (id, verb)."""
        found = []
        for name in names(join(self._run_uri, REQUESTS)):
            if name.endswith(".json") and name.removesuffix(".json") not in self._answers:
                found.append((name.removesuffix(".json"), json.loads(read_text(join(self._run_uri, REQUESTS, name)))["do"]))
        return found

    def answer(self, identity: str, text: str) -> None:
        """Answer a request; whoever asked sees it with the next state."""
        self._answers = dict([*self._answers.items(), (identity, text)][-KEPT_ANSWERS:])
        remove(join(self._run_uri, REQUESTS, f"{identity}.json"))

    def due(self) -> bool:
        """Whether it is time to look at requests and to write the state."""
        return time.monotonic() - self._written >= BEAT_S

    def write(self, values: Mapping[str, Any]) -> None:
        """Write the state."""
        self._written = time.monotonic()
        owner = {"host": self._owner.host, "pid": self._owner.pid, "token": self._owner.token}
        write_text(join(self._run_uri, STATUS), json.dumps({"time": time.time(), "owner": owner, "answers": self._answers, **values}))


def describe(state: Mapping[str, Any]) -> str:
    """A run's state for people."""
    now = state["state"] if alive(state) or state["state"] == "ended" else f"not under way (last seen {time.time() - state['time']:.0f} s ago)"
    held = ", held open" if state["hold"] else ""
    sources = "\n".join(f"  {source}: {count:,} samples" for source, count in sorted(state["sources"].items()))
    return (
        f"{state['run']}: {now}, {state['phase']}{held}, {state['samples']:,} of {state['A']:,} samples (handed out: {state['issued']:,})\n"
        f"W = {state['W']:,}, S = {state['S']:,}, A = {state['A']:,}; rate {state['rate']:.3g}; corpus version {state['corpus_version']}\n{sources}"
    )


def announce(storage: str, corpus: str, timeout_s: float) -> list[str]:
    """Tell every running job below a storage that reads this corpus to look at it. One line for each: what it takes up, and at which sample."""
    said = []
    for run in names(storage):
        state = status(join(storage, run))
        if state is None or state["corpus"] != corpus or not alive(state):
            continue
        try:
            said.append(f"{run} {ask(join(storage, run), run, 'look', timeout_s)}")
        except RunError as error:
            said.append(f"{run} will look at the corpus when its next segment is handed out ({error})")
    return said

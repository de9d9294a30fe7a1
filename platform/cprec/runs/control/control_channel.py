"""Requests to a running job and its answers, as small files below <storage>/<run>/.

A laptop, another cluster or a driver that was started again can reach the run through them, and
nothing is lost while nobody listens (docs/decisions/006-requests-through-storage.md).

    requests/<id>.json   {"do": "look" | "hold" | "release" | "anneal"}, removed once answered
    status.json          holds the latest answers (`cprec.runs.control.status`)
"""

import json
import time
import uuid
from typing import Literal

from cluster.errors import RunError
from cluster.storage import join, list_names, read_text, remove, write_text
from cprec.runs.control.lease import Lease, Liveness, find_liveness
from cprec.runs.control.status import is_starting, read_status, write_status
from cprec.runs.records import Status

REQUESTS_FOLDER = "requests"

MAX_ANSWERS = 20
"""Answers that the status keeps, the latest."""

STATUS_INTERVAL_S = 2.0
"""Seconds between two writes of the status."""

ANSWER_POLL_S = 0.5
"""Seconds between two looks for an answer."""

Action = Literal["look", "hold", "release", "anneal"]
"""What a run can be asked to do: look at the corpus, or change its stable phase."""


class ControlChannel:
    """The run's end of the channel: takes requests, keeps answers, writes the status."""

    def __init__(self, lease: Lease) -> None:
        self._run_uri, self._lease = lease.run_uri, lease
        self._answers: dict[str, str] = {}
        self._last_write = 0.0

    def pending_requests(self) -> list[tuple[str, Action]]:
        """Returns (request id, action) of every request that is not answered yet."""
        pending: list[tuple[str, Action]] = []
        for name in list_names(join(self._run_uri, REQUESTS_FOLDER)):
            request_id = name.removesuffix(".json")
            if request_id != name and request_id not in self._answers:
                request = json.loads(read_text(join(self._run_uri, REQUESTS_FOLDER, name)))
                pending.append((request_id, request["do"]))
        return pending

    def answer(self, request_id: str, text: str) -> None:
        """Answers a request; whoever asked sees the answer in the next status."""
        self._answers = dict([*self._answers.items(), (request_id, text)][-MAX_ANSWERS:])
        remove(join(self._run_uri, REQUESTS_FOLDER, f"{request_id}.json"))

    def is_due(self) -> bool:
        """Returns whether it is time to look at requests and to write the status."""
        return time.monotonic() - self._last_write >= STATUS_INTERVAL_S

    def publish(self, status: Status) -> None:
        """Writes the status, with the holder of the lease and the latest answers.

        Raises:
            LeaseLostError: Another driver has taken over the run.
        """
        self._last_write = time.monotonic()
        self._lease.require()
        current = {
            "time": time.time(),
            "owner": self._lease.owner,
            "lease": self._lease.number,
            "answers": self._answers,
        }
        write_status(self._run_uri, status.model_copy(update=current))


def require_running(run_uri: str, run: str) -> None:
    """Raises RunError if nobody trains the run, who could answer a request."""
    if find_liveness(run_uri)[1] is Liveness.GONE:
        raise RunError(
            f"the run {run} is not under way ({run_uri}); start it with jobs/cpt.py --run {run}"
        )


def send_request(run_uri: str, run: str, action: Action, timeout_s: float) -> str:
    """Sends a request to a run and waits for its answer.

    A request that was not answered in time is taken back, so that it is not carried out later.

    Args:
        run_uri: Folder of the run.
        run: Name of the run, for messages.
        action: What the run is asked to do.
        timeout_s: Time to wait (seconds).

    Raises:
        RunError: The run is not under way, or did not answer in time.
    """
    require_running(run_uri, run)
    request_id = uuid.uuid4().hex[:12]
    request_uri = join(run_uri, REQUESTS_FOLDER, f"{request_id}.json")
    deadline = time.monotonic() + timeout_s
    try:
        write_text(request_uri, json.dumps({"do": action}))
        while time.monotonic() < deadline:
            status = read_status(run_uri)
            if status is not None and request_id in status.answers:
                return status.answers[request_id]
            time.sleep(ANSWER_POLL_S)
    finally:  # also after Ctrl-C
        remove(request_uri)
    raise RunError(
        f"the run {run} did not answer within {timeout_s:.0f} s; "
        "it may be starting or saving: try again"
    )


def notify_runs(storage: str, corpus_uri: str, timeout_s: float) -> list[str]:
    """Asks every running job below a storage that reads a corpus to look at its new version.

    Returns:
        One line per run for people: what it takes up, and at which sample.
    """
    lines = []
    for run in list_names(storage):
        run_uri = join(storage, run)
        lease, liveness = find_liveness(run_uri)
        if lease is None or lease.corpus != corpus_uri or liveness is Liveness.GONE:
            continue
        status = read_status(run_uri)
        if is_starting(lease, status):
            lines.append(f"{run} is starting, and looks at the corpus before its first segment")
            continue
        if status is not None and status.state == "ended":
            continue  # it only finishes: audit, report, registration
        try:
            lines.append(f"{run} {send_request(run_uri, run, 'look', timeout_s)}")
        except RunError as error:
            lines.append(
                f"{run} will look at the corpus when its next segment is handed out ({error})"
            )
    return lines

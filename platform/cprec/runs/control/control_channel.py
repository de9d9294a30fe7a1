"""Requests to a running job and its answers, as small files below <storage>/<run>/.

A laptop, another cluster or a driver that was started again can reach the run through them, and
nothing is lost while nobody listens (docs/decisions/006-requests-through-storage.md).

    requests/<id>.json   {"do": "look" | "hold" | "release" | "anneal" | "stop", "by": "who asks"},
                         removed once answered
    requests-refused/    files that are not requests
    status.json          holds the latest answers (`cprec.runs.control.status`)
"""

import json
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass

from cluster.errors import RunError
from cluster.storage import join, list_names, remove_file, write_text
from cprec.runs.control.lease import Lease
from cprec.runs.control.liveness import Liveness, find_liveness
from cprec.runs.control.request_queue import (
    REQUESTS_FOLDER,
    Action,
    BadRequest,
    Request,
    RequestQueue,
    StoredRequest,
    is_request_id,
)
from cprec.runs.control.status import is_starting, read_status, write_status
from cprec.runs.records import Status
from cprec.schedule.wsa import Phase

ANSWER_KEPT_S = 120.0
"""Time for which the status keeps an answer (seconds). Whoever asked looks twice a second."""

STATUS_INTERVAL_S = 2.0
"""Seconds between two writes of the status."""

ANSWER_POLL_S = 0.5
"""Seconds between two looks for an answer."""


@dataclass(frozen=True)
class _Answer:
    """An answer, whether it is a refusal, and when it was given (monotonic clock, seconds)."""

    text: str
    is_refusal: bool
    time_s: float


class ControlChannel:
    """The run's end of the channel: takes requests, keeps answers, writes the status.

    A request is removed only once its answer is on storage. So where a controller dies before
    that, the next one reads the request again and answers it.
    """

    def __init__(self, lease: Lease) -> None:
        self._run_uri, self._lease = lease.run_uri, lease
        self._queue = RequestQueue(lease.run_uri)
        self._answers: dict[str, _Answer] = {}
        self._unremoved: set[str] = set()
        self._last_write = 0.0
        self._take_over_answers()

    def _take_over_answers(self) -> None:
        """Keeps the answers of the controller before, which somebody may not have seen yet."""
        if before := _read_status_if_whole(self._run_uri):
            for request_id, text in before.answers.items():
                # Whoever can write the status must not name a file elsewhere that is removed.
                if is_request_id(request_id):
                    self.answer(request_id, text, request_id in before.refused)

    def take_requests(self) -> list[Request | BadRequest]:
        """Returns the next requests that are not answered yet, in the order of their arrival."""
        return self._queue.take(self._answers.keys() | self._unremoved)

    def answer(self, request_id: str, text: str, refused: bool = False) -> None:
        """Answers a request; whoever asked sees the answer in the next status."""
        self._keep_answer(request_id, text, refused)
        self._unremoved.add(request_id)

    def set_aside(self, bad: BadRequest, text: str) -> str:
        """Refuses a file that is not a request, and moves it aside; returns where it is now."""
        self._keep_answer(bad.id, text, refused=True)
        return self._queue.move_aside(bad)

    def _keep_answer(self, request_id: str, text: str, refused: bool) -> None:
        self._answers[request_id] = _Answer(text, refused, time.monotonic())

    def is_due(self) -> bool:
        """Returns whether it is time to look at requests and to write the status."""
        return time.monotonic() - self._last_write >= STATUS_INTERVAL_S

    def publish(self, status: Status) -> None:
        """Writes the status, with the holder of the lease and the latest answers.

        Raises:
            LeaseLostError: Another driver has taken over the run.
        """
        self._last_write = time.monotonic()
        self._forget_old_answers()
        self._lease.require()
        current = {
            "time": time.time(),
            "owner": self._lease.owner,
            "lease": self._lease.number,
            "answers": {i: answer.text for i, answer in self._answers.items()},
            "refused": sorted(i for i, answer in self._answers.items() if answer.is_refusal),
        }
        write_status(self._run_uri, status.model_copy(update=current), self._lease)
        self._unremoved = self._queue.remove(self._unremoved)

    def _forget_old_answers(self) -> None:
        oldest = time.monotonic() - ANSWER_KEPT_S
        self._answers = {i: a for i, a in self._answers.items() if a.time_s >= oldest}


def require_running(run_uri: str, run: str) -> None:
    """Raises RunError if the run has no live controller that could answer a request."""
    if find_liveness(run_uri)[1] is Liveness.GONE:
        status = _read_status_if_whole(run_uri)
        if status is not None and status.phase is Phase.DONE:
            raise RunError(
                f"the run {run} has finished ({run_uri}), after {status.samples:,} samples; to go "
                "on with what the corpus gained since, start another run with jobs/cpt.py "
                "--continue-from CHECKPOINT"
            )
        raise RunError(
            f"the run {run} is not under way ({run_uri}); start it with jobs/cpt.py --run {run}"
        )


def send_request(
    run_uri: str, run: str, action: Action, timeout_s: float, by: str | None = None
) -> str:
    """Sends a request to a run and waits for its answer.

    A request that was not answered in time is taken back, so that it is not carried out later.

    Args:
        run_uri: Folder of the run.
        run: Name of the run, for messages.
        action: What the run is asked to do.
        timeout_s: Time to wait (seconds).
        by: Who asks, for the events of the run.

    Returns:
        The answer, to be read after the name of the run.

    Raises:
        RunError: The run is not under way, refused the request, or did not answer in time.
    """
    require_running(run_uri, run)
    # Requests of one sender are in order also where the storage tells seconds only.
    request_id = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    request_uri = join(run_uri, REQUESTS_FOLDER, f"{request_id}.json")
    deadline = time.monotonic() + timeout_s
    try:
        request: StoredRequest = {"do": action}
        if by:
            request["by"] = by
        write_text(request_uri, json.dumps(request))
        while time.monotonic() < deadline:
            status = _read_status_if_whole(run_uri)
            if status is not None and request_id in status.answers:
                if request_id in status.refused:
                    raise RunError(f"the run {run} {status.answers[request_id]}")
                return status.answers[request_id]
            time.sleep(ANSWER_POLL_S)
    finally:  # also after Ctrl-C
        remove_file(request_uri)
    raise RunError(
        f"the run {run} did not answer within {timeout_s:.0f} s; "
        "it may be starting or saving: try again"
    )


def _read_status_if_whole(run_uri: str) -> Status | None:
    """Reads the status; None if there is none, or a damaged one, which the run replaces."""
    with suppress(RunError):
        return read_status(run_uri)
    return None


def notify_runs(
    storage: str, corpus_uri: str, timeout_s: float, by: str | None = None
) -> list[str]:
    """Asks every running job below a storage that reads a corpus to look at its new version.

    Args:
        storage: Storage of the runs.
        corpus_uri: URI of the corpus.
        timeout_s: Time that each run has to answer (seconds).
        by: Who made the version, for the events of the runs.

    Returns:
        One line per run for people: what it takes up, and at which sample.
    """
    lines = []
    for run in list_names(storage):
        try:
            line = _notify_run(join(storage, run), run, corpus_uri, timeout_s, by)
        except RunError as error:  # another run's files must not keep the others from hearing of it
            line = f"{run} was not told of it ({error})"
        if line is not None:
            lines.append(line)
    return lines


def _notify_run(
    run_uri: str, run: str, corpus_uri: str, timeout_s: float, by: str | None
) -> str | None:
    """Asks one run to look at its corpus; None if nobody trains it on that corpus.

    Raises:
        RunError: A file of the run is damaged.
    """
    lease, liveness = find_liveness(run_uri)
    if lease is None or lease.corpus != corpus_uri or liveness is Liveness.GONE:
        return None
    status = _read_status_if_whole(run_uri)
    if is_starting(lease, status):
        return f"{run} is starting, and looks at the corpus before its first segment"
    if status is not None and status.state == "ended":
        return None  # it only finishes: audit, report, registration
    try:
        return f"{run} {send_request(run_uri, run, 'look', timeout_s, by)}"
    except RunError as error:
        return f"{run} will look at the corpus when its next segment is handed out ({error})"

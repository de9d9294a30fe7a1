"""How all runs below a storage stand. Who looks again reads only what changed.

A run is a folder that a driver or a controller has written to. Nobody is waited for: what one look
cannot tell is `unknown`, and `cprec.runs.control.status.describe_run` looks longer.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from cluster.errors import CprecError
from cluster.storage import is_remote, join, list_etags, list_names
from cprec.config.recipe import RESERVED_RUN_NAMES
from cprec.runs.control.attempts import ATTEMPTS_FOLDER, list_attempts
from cprec.runs.control.liveness import LEASES_FOLDER, judge, read_lease
from cprec.runs.control.overview import (
    RECENT_STEPS,
    RunGlance,
    RunOverview,
    State,
    build_overview,
)
from cprec.runs.control.status import read_status
from cprec.runs.events import Event, parse_event
from cprec.runs.json_lines import read_tail
from cprec.runs.records import (
    EVENTS_FILE,
    PLAN_FILE,
    STATUS_FILE,
    TRACE_FILE,
    Attempt,
    LeaseRecord,
    Status,
    TraceRow,
    run_folder,
)

STARTED_FILES = frozenset({STATUS_FILE, PLAN_FILE, EVENTS_FILE})
"""A folder that has one of these is that of a run that was started."""

RUN_FILES = STARTED_FILES | {LEASES_FOLDER}
"""A folder that has one of these is a run's, unless its start was refused."""

EVENTS_BYTES = 16_384
"""Bytes of the newest events that an overview is made of."""

STEP_BYTES = 32_768
"""Bytes of the newest steps that an overview is made of while somebody trains the run."""

LAST_STEP_BYTES = 8_192
"""Bytes that hold the last step, also of 100 sources: of a run that rests, no speed is shown."""

REST_FACTOR = 100
"""A look at all runs is followed by this many times its CPU time in which only those that train
are looked at."""

THREADS = 16
"""Runs that are read at a time from an object store, which takes its time to answer."""


class RunReader:
    """One run, of which each look reads what changed since the last one."""

    def __init__(self, storage: str, run: str) -> None:
        self.run = run
        self._uri = run_folder(storage, run)
        self._tags: dict[str, str] = {}
        self._lease: LeaseRecord | None = None
        self._status: Status | None = None
        self._attempt: Attempt | None = None
        self._events: list[Event] = []
        self._steps: list[TraceRow] = []
        self._problem = ""

    @property
    def may_rest(self) -> bool:
        """Whether nobody was at work at the last look, so that hardly anything changes."""
        return self._lease is None or self._lease.ended

    @property
    def _was_refused(self) -> bool:
        """Whether drivers only ever held the run while they checked their input, and ended."""
        is_started = bool(STARTED_FILES & self._tags.keys())
        return not (is_started or self._problem) and self._lease is not None and self._lease.ended

    def look(self) -> RunOverview | None:
        """Returns how the run stands; None if the folder is no run's."""
        try:
            tags = list_etags(self._uri)
            if not RUN_FILES & tags.keys():
                return None
            changed = {name for name, tag in tags.items() if self._tags.get(name) != tag}
            if changed or not self.may_rest:
                self._read(changed)
        except (CprecError, OSError, ValueError) as error:
            self._tags, self._problem = {}, str(error)  # read again at the next look
        else:
            self._tags, self._problem = tags, ""
        if self._was_refused:
            return None
        run = build_overview(self._glance())
        if self._problem:
            return replace(run, state=State.UNKNOWN, waits_for=self._problem)
        return run

    def _glance(self) -> RunGlance:
        return RunGlance(
            self.run,
            self._lease,
            judge(self._lease),
            self._status,
            self._attempt,
            self._events,
            self._steps,
        )

    def _read(self, changed: set[str]) -> None:
        self._lease = read_lease(self._uri)
        if STATUS_FILE in changed:
            self._status = read_status(self._uri)
        if EVENTS_FILE in changed:
            self._events = read_tail(join(self._uri, EVENTS_FILE), EVENTS_BYTES, parse_event)
        if TRACE_FILE in changed:
            size, count = (LAST_STEP_BYTES, 1) if self.may_rest else (STEP_BYTES, RECENT_STEPS)
            uri = join(self._uri, TRACE_FILE)
            self._steps = read_tail(uri, size, TraceRow.from_json, count)
        if changed & {ATTEMPTS_FOLDER, EVENTS_FILE}:  # stores do not tell that a folder changed
            self._attempt = next(reversed(list_attempts(self._uri)), None)


class RunList:
    """All runs below a storage."""

    def __init__(self, storage: str) -> None:
        self._storage = storage
        self._readers: dict[str, RunReader] = {}
        self._rows: dict[str, RunOverview] = {}
        self._next_full_look = 0.0

    def look(self) -> dict[str, RunOverview]:
        """Returns how each run stands, by name.

        Runs that nobody trains are looked at less often the more of them there are.
        """
        names = [name for name in list_names(self._storage) if name not in RESERVED_RUN_NAMES]
        is_full = time.monotonic() >= self._next_full_look
        began = time.thread_time()
        readers = {
            name: self._readers.get(name) or RunReader(self._storage, name) for name in names
        }
        due = [
            reader
            for name, reader in readers.items()
            if is_full or name not in self._readers or not reader.may_rest
        ]
        self._readers = readers
        rows = {name: row for name, row in self._rows.items() if name in readers}
        for reader, row in zip(due, self._look_at(due), strict=True):
            if row is None:
                rows.pop(reader.run, None)
            else:
                rows[reader.run] = row
        self._rows = rows
        if is_full:
            pause = (time.thread_time() - began) * REST_FACTOR
            self._next_full_look = time.monotonic() + pause
        return rows

    def _look_at(self, readers: list[RunReader]) -> list[RunOverview | None]:
        if not is_remote(self._storage):
            return [reader.look() for reader in readers]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(RunReader.look, readers))


def list_runs(storage: str) -> list[RunOverview]:
    """Lists the runs below a storage (absolute URI), by name."""
    return [run for _, run in sorted(RunList(storage).look().items())]

"""A run's row says what it does, what it waits for, and when it will be done."""

import pytest

from cprec.runs.control.liveness import Liveness
from cprec.runs.control.overview import RunGlance, State, build_overview
from cprec.runs.events import (
    CheckpointSaved,
    CorpusVersionAdopted,
    Event,
    Failed,
    Resumed,
    Stopped,
    WorkersFailed,
)
from cprec.runs.records import Attempt, LeaseRecord, Owner, Status
from cprec.schedule.wsa import Phase
from tests.records import trace_row

OWNER = Owner(host="elsewhere", pid=7, token="t")


def status(**fields: object) -> Status:
    values = {"owner": OWNER, "lease": 1, "run": "trunk", "state": "training", "phase": "stable"}
    plan = {"samples": 500, "issued": 700, "W": 100, "S": 1000, "A": 2000, "lr": 1e-3}
    return Status.from_json({**values, **plan, **fields})


def glance(
    liveness: Liveness = Liveness.RUNNING,
    ended: bool = False,
    events: tuple[Event, ...] = (),
    **fields: object,
) -> RunGlance:
    return RunGlance(
        "trunk",
        LeaseRecord(number=1, owner=OWNER, run="trunk", corpus="c", ended=ended),
        liveness,
        status(**fields),
        Attempt(number=0, lease=1, owner=OWNER, samples=0, workers=4),
        events,
        [trace_row(step=i, tokens=1000, step_s=0.5, batch_samples=50) for i in range(3)],
    )


GONE = Liveness.GONE
FAILED = Failed(samples=1, because="no room")
DIED = WorkersFailed(samples=1, attempt=0, because="out of memory", silent=[])
STOPPED = Stopped(samples=1, by="console (Ada)")
WENT_ON = Resumed(samples=1, checkpoint="c", attempt=1, workers=4)


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        (glance(), State.TRAINING, ""),
        (glance(hold=True), State.TRAINING, "held open"),
        (glance(state="waiting"), State.WAITING, "append a domain, or release"),
        (glance(state="waiting", waits_for="nothing can join"), State.WAITING, "nothing can join"),
        (glance(lease=0), State.STARTING, "load the base"),
        (glance(state="ended"), State.FINISHING, "audit"),
        (glance(Liveness.UNKNOWN), State.UNKNOWN, ""),
        (glance(GONE, ended=True, state="ended", phase="done"), State.DONE, ""),
        (glance(GONE, ended=True, state="ended", events=(STOPPED,)), State.STOPPED, "(Ada)"),
        (glance(GONE, ended=True, state="ended", events=(FAILED,)), State.FAILED, "no room"),
        (glance(GONE, ended=True, state="ended", events=(DIED,)), State.FAILED, "out of memory"),
        (glance(GONE, events=(DIED, WENT_ON)), State.LOST, "its driver is gone"),
        (RunGlance("empty"), State.LOST, "its driver is gone"),
        (RunGlance("rest", events=(FAILED,)), State.FAILED, "no room"),
        (RunGlance("rest", events=(STOPPED,)), State.STOPPED, "(Ada)"),
    ],
)
def test_a_state_is_told_by_lease_status_and_events(
    seen: RunGlance, state: State, words: str
) -> None:
    row = build_overview(seen)
    assert row.state is state
    assert words in row.waits_for


def test_speed_and_time_left_are_of_the_recent_steps() -> None:
    row = build_overview(glance())
    assert row.tokens_per_s == 2000
    assert row.seconds_left == (2000 - 500) / 100
    assert build_overview(glance(state="waiting")).seconds_left is None


def test_a_row_has_what_is_there() -> None:
    joined = CorpusVersionAdopted(
        samples=600, version=1, sources={}, stable_end=1000, annealing_end=2000, stable_end_before=9
    )
    saved = CheckpointSaved(samples=400, checkpoint="c")
    row = build_overview(glance(events=(joined, saved)))
    assert (row.workers, row.checkpoint, row.checkpoint_samples) == (4, "c", 400)
    assert row.stable_end_before == 9
    assert (row.phase, row.samples, row.issued) == (Phase.STABLE, 500, 700)
    nothing = build_overview(RunGlance("empty"))
    assert (nothing.loss, nothing.workers, nothing.annealing_end) == (None, None, 0)

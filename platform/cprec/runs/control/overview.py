"""How a run stands, by what one look at its files gave. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cprec.runs.control.liveness import Liveness
from cprec.runs.control.status import describe_state, is_starting
from cprec.runs.events import (
    CheckpointSaved,
    CorpusVersionAdopted,
    Event,
    Failed,
    Resumed,
    RunStarted,
    Stopped,
    WorkersFailed,
)
from cprec.runs.records import Attempt, LeaseRecord, Status, TraceRow
from cprec.schedule.wsa import Phase

RECENT_STEPS = 50
"""Steps over which speeds are averaged."""


class State(StrEnum):
    """What a run does, for the eye: each has its own mark."""

    STARTING = "starting"
    TRAINING = "training"
    WAITING = "waiting"
    FINISHING = "finishing"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunGlance:
    """What one look at a run's files gave.

    Attributes:
        run: Name of the run.
        lease: Its newest lease.
        liveness: Whether a driver trains it.
        status: Its status.
        attempt: The newest start of its worker group.
        events: Its newest events, in order.
        steps: Its newest steps, in order, `RECENT_STEPS` of them.
    """

    run: str
    lease: LeaseRecord | None = None
    liveness: Liveness = Liveness.GONE
    status: Status | None = None
    attempt: Attempt | None = None
    events: Sequence[Event] = ()
    steps: Sequence[TraceRow] = ()


@dataclass(frozen=True)
class RunOverview:
    """How a run stands.

    Attributes:
        run: Name of the run.
        state: What it does.
        detail: The same in words, with what is not known of it.
        waits_for: What it waits for, or why it ended; empty where there is nothing to say.
        phase: Phase of the schedule; None before the first step.
        hold: Whether its stable phase is held open.
        samples: Samples seen.
        issued: Samples handed out to workers.
        warmup_end: W (samples).
        stable_end: S (samples).
        annealing_end: A (samples).
        stable_end_before: S before a version joined last (samples); None where it never moved.
        lr: Learning rate of the next step.
        loss: Mean loss of the last step.
        tokens_per_s: Tokens of a second, over recent steps.
        seconds_left: Time to the end of the plan, at this speed; None where none passes.
        workers: Workers of the newest group.
        checkpoint: URI of the last checkpoint.
        checkpoint_samples: Samples at it.
        corpus: URI of the corpus.
        corpus_version: Newest corpus version in the plan.
        time: Last sign of life (Unix seconds).
    """

    run: str
    state: State
    detail: str
    waits_for: str
    phase: Phase | None
    hold: bool
    samples: int
    issued: int
    warmup_end: int
    stable_end: int
    annealing_end: int
    stable_end_before: int | None
    lr: float | None
    loss: float | None
    tokens_per_s: float | None
    seconds_left: float | None
    workers: int | None
    checkpoint: str | None
    checkpoint_samples: int | None
    corpus: str | None
    corpus_version: int | None
    time: float


def build_overview(glance: RunGlance) -> RunOverview:
    """Judges how a run stands from what one look at its files gave."""
    status, lease, saved = glance.status, glance.lease, _find_checkpoint(glance.events)
    state = find_state(glance)
    samples_per_s, tokens_per_s = measure_speed(glance.steps)
    end = (status and status.annealing_end) or 0
    samples = status.samples if status else 0
    moves = state is State.TRAINING and samples_per_s > 0
    times = [record.time for record in (lease, status) if record is not None]
    return RunOverview(
        run=glance.run,
        state=state,
        detail=_describe(state, glance),
        waits_for=describe_wait(state, glance),
        phase=status.phase if status else None,
        hold=bool(status and status.hold),
        samples=samples,
        issued=(status and status.issued) or samples,
        warmup_end=(status and status.warmup_end) or 0,
        stable_end=(status and status.stable_end) or 0,
        annealing_end=end,
        stable_end_before=_find_stable_end_before(glance.events),
        lr=status.lr if status else None,
        loss=glance.steps[-1].loss if glance.steps else None,
        tokens_per_s=tokens_per_s if glance.steps else None,
        seconds_left=max(end - samples, 0) / samples_per_s if moves else None,
        workers=glance.attempt.workers if glance.attempt else _find_workers(glance.events),
        checkpoint=saved.checkpoint if saved else None,
        checkpoint_samples=saved.samples if saved else None,
        corpus=_find_corpus(lease, status),
        corpus_version=status.corpus_version if status else None,
        time=max(times, default=0.0),
    )


def _describe(state: State, glance: RunGlance) -> str:
    """Returns what a run does in words, without ages that would change at each look."""
    if state is State.LOST or (glance.lease is None and glance.status is None):
        return "not under way"
    return describe_state(glance.lease, glance.liveness, glance.status)


def find_state(glance: RunGlance) -> State:
    """Finds what a run does, by its lease, its status and the last events."""
    status, lease = glance.status, glance.lease
    if lease is None or glance.liveness is Liveness.GONE:
        return _find_end_state(glance)
    if glance.liveness is Liveness.UNKNOWN:
        return State.UNKNOWN
    if status is None or is_starting(lease, status) or status.state == "starting":
        return State.STARTING
    if status.state == "ended":
        return State.FINISHING
    return State.WAITING if status.state == "waiting" else State.TRAINING


def _find_end_state(glance: RunGlance) -> State:
    """Finds how a run ended that nobody trains."""
    status, last = glance.status, _find_last_end(glance.events)
    if status is not None and status.state == "ended" and status.phase is Phase.DONE:
        return State.DONE
    if isinstance(last, Failed | WorkersFailed):
        return State.FAILED
    if isinstance(last, Stopped):
        return State.STOPPED
    ended = glance.lease is not None and glance.lease.ended
    return State.STOPPED if ended or (status and status.state == "ended") else State.LOST


def _find_last_end(events: Sequence[Event]) -> Event | None:
    """Returns the last event that ends a run, unless a later one says that it went on."""
    for event in reversed(events):
        if isinstance(event, Failed | Stopped | WorkersFailed):
            return event
        if isinstance(event, Resumed | RunStarted):
            return None
    return None


def describe_wait(state: State, glance: RunGlance) -> str:
    """Describes for people what a run waits for, or why it ended; empty where nothing is to say."""
    status, last = glance.status, _find_last_end(glance.events)
    if state is State.WAITING and status is not None:
        return status.waits_for or "new samples: append a domain, or release it"
    if state is State.STARTING:
        return "workers are starting, and load the base"
    if state is State.FINISHING:
        return "audit, report and registration"
    if state is State.TRAINING and status is not None and status.hold:
        return "held open: it will wait for domains at the end of its stable phase"
    if state is State.FAILED and isinstance(last, Failed | WorkersFailed):
        return last.because
    if state is State.STOPPED:
        by = last.by if isinstance(last, Stopped) else None
        return f"stopped{f' by {by}' if by else ''}; the same command goes on"
    if state is State.LOST:
        return "its driver is gone; the same command goes on from the last checkpoint"
    return ""


def measure_speed(steps: Sequence[TraceRow]) -> tuple[float, float]:
    """Returns samples and tokens of a second over some steps; time that was held does not count."""
    seconds = sum(step.step_s + step.data_wait_s for step in steps)
    if seconds <= 0:
        return 0.0, 0.0
    samples = sum(step.batch_samples for step in steps)
    return samples / seconds, sum(step.tokens for step in steps) / seconds


def _find_stable_end_before(events: Sequence[Event]) -> int | None:
    adopted = [e for e in events if isinstance(e, CorpusVersionAdopted)]
    return adopted[-1].stable_end_before if adopted else None


def _find_workers(events: Sequence[Event]) -> int | None:
    """Returns the workers of the last group that went on; runs of earlier releases say no more."""
    resumed = [event.workers for event in events if isinstance(event, Resumed)]
    return resumed[-1] if resumed else None


def _find_checkpoint(events: Sequence[Event]) -> CheckpointSaved | None:
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    return saved[-1] if saved else None


def _find_corpus(lease: LeaseRecord | None, status: Status | None) -> str | None:
    """Returns the corpus: a run that starts has written no status, but its lease names it."""
    return (lease and lease.corpus) or (status and status.corpus) or None

"""What a run's controller knows, in memory and on storage: plan, events, trace and status.

The only writer of these files. Every change of the plan is on storage before it takes effect, so
the actor can die at any moment: a new one reads plan.json, and the next worker group tells it from
which checkpoint training goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cluster.errors import PlatformFault, RunError
from cluster.storage import join
from cluster.storage_errors import is_storage_error
from cprec.runs.control.lease import Lease
from cprec.runs.events import Event, PhaseChanged, RecordDropped
from cprec.runs.json_lines import open_events, open_trace
from cprec.runs.records import TRACE_FILE, Status, TraceRow
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_records import count_traced_samples
from cprec.schedule.controller import Controller
from cprec.schedule.passes import ONE_PASS, Passes
from cprec.schedule.plan_notes import count_domain_samples
from cprec.stream.row_encoder import RowEncoder


@dataclass(frozen=True)
class ControllerSettings:
    """What the controller needs of the recipe.

    Attributes:
        run: Name of the run.
        run_uri: Folder of the run.
        corpus_uri: Folder of the corpus.
        row_encoder: Encoder of the rows, with the titles of the version that the driver has opened.
        global_batch_size: Samples of an optimizer step.
        segment_samples: Samples of a segment, at most.
        poll_samples: Samples between two looks at the corpus, at most.
        max_domain_samples: Cap on domain-specific samples; None: no cap.
        replay_share: Fraction of the samples up to S that are windows of text.
        min_annealing_share: Fraction of annealing samples below which a changed plan warns.
        annealing_share: Fraction of annealing samples that the recipe asks for; None: none.
        passes: How often the samples of each source are read.
    """

    run: str
    run_uri: str
    corpus_uri: str
    row_encoder: RowEncoder
    global_batch_size: int
    segment_samples: int
    poll_samples: int
    max_domain_samples: int | None
    replay_share: float
    min_annealing_share: float
    annealing_share: float | None = None
    passes: Passes = ONE_PASS


@dataclass(frozen=True)
class RunNews:
    """What the driver is told of a run about once a second.

    Attributes:
        rows: New trace rows.
        events: New events.
        next_row: Index of the first trace row that is new at the next call. It goes back where
            workers start again and rows are dropped.
        next_event: Index of the first event that is new then.
        waiting: Why the workers wait for new samples, for people; None: they do not.
        planned_samples: Samples of the plan (A) as it stands.
    """

    rows: Sequence[TraceRow]
    events: Sequence[Event]
    next_row: int
    next_event: int
    waiting: str | None
    planned_samples: int


class StepReply(NamedTuple):
    """What the controller wants of the workers after a step.

    Attributes:
        stop: Whether they should end.
        checkpoint_requests: How often a checkpoint was asked for since the group started.
    """

    stop: bool
    checkpoint_requests: int


@dataclass(frozen=True)
class WorkerGroup:
    """One start of the worker group.

    Attributes:
        attempt: Number of the start.
        world_size: Number of workers.
        samples: Samples that are trained already.
        checkpoint_uri: Checkpoint that the group goes on from; None at the very start.
    """

    attempt: int
    world_size: int
    samples: int
    checkpoint_uri: str | None


class ControllerState:
    """One run's plan, controller and records."""

    def __init__(self, settings: ControllerSettings, lease: Lease) -> None:
        lease.require()
        run_plan = RunPlan.read(settings.run_uri)
        if run_plan is None:
            raise PlatformFault(
                f"{settings.run_uri}: no plan.json; a run's plan is written before its "
                "controller starts"
            )
        self.settings, self.lease = settings, lease
        self.run_plan = run_plan
        self.controller = self._controller_at(0)
        self.group: WorkerGroup | None = None
        self.workers_wait = False
        self._events, self.trace = (
            open_events(settings.run_uri, lease),
            open_trace(settings.run_uri, lease),
        )
        self.trace_rows = self.trace.read()
        self.events = self._events.read()
        self.record(*(RecordDropped(samples=0, because=problem) for problem in self.trace.damage))

    def restart(self, group: WorkerGroup) -> None:
        """Goes back to where a worker group starts.

        Later trace rows are dropped, because their samples will be trained again.

        Raises:
            PlatformFault: The group was paused, and another one has begun after it.
            RunError: A step before that is not in the trace, so the audit could not succeed.
        """
        self.lease.require()
        if self.group is not None and group.attempt < self.group.attempt:
            raise _is_over(group.attempt, self.group)
        covered = count_traced_samples(self.trace_rows)
        if covered < group.samples:
            raise RunError(
                f"{join(self.settings.run_uri, TRACE_FILE)} holds no step that begins at "
                f"{covered:,} samples, and the checkpoint is at {group.samples:,}: the run can no "
                "longer be audited; restore the file, or use another --run"
            )
        self.group = group
        self.controller = self._controller_at(group.samples)
        self.trace.retain(lambda row: row.samples < group.samples)
        self.trace_rows = self.trace.read()

    def require_group(self, attempt: int) -> None:
        """Checks that whoever calls is of the worker group that trains.

        Args:
            attempt: Number of the caller's attempt.

        Raises:
            PlatformFault: The controller was started again between two steps: what its predecessor
                had not flushed is lost, so the group must go back to its last checkpoint too. Or
                another group trains by now, and this one was only paused.
        """
        if self.group is None:
            raise PlatformFault(
                "the controller was started again while workers trained; "
                "they go on from the last checkpoint"
            )
        if self.group.attempt != attempt:
            raise _is_over(attempt, self.group)

    @property
    def is_idle(self) -> bool:
        """Whether the workers wait for new samples.

        They ask for the next segment before they have trained the present one.
        """
        controller = self.controller
        return self.workers_wait and controller.samples >= controller.plan.wsa.stable_end

    def describe_wait(self) -> str | None:
        """Describes for people what the workers wait for; None if they do not wait."""
        if not self.is_idle:
            return None
        plan, cap = self.controller.plan, self.settings.max_domain_samples
        if cap is not None and count_domain_samples(plan, plan.wsa.stable_end) >= cap:
            return (
                f"the stable phase is trained and held open, but train.max_samples ({cap:,}) is "
                "used up, and no domain-specific sample can join: release it"
            )
        return "the stable phase is trained and held open: append a domain, or release it"

    def write_run_plan(self, run_plan: RunPlan) -> None:
        """Makes a changed plan durable, then takes it over."""
        self.lease.require()
        run_plan.write(self.settings.run_uri, self.lease)
        self.run_plan = run_plan

    def flush(self) -> None:
        """Makes the trace and the events durable."""
        self.lease.require()
        self.trace.flush()
        self._events.flush()

    def add_step(self, row: TraceRow) -> None:
        """Adds a step to the trace; the phase follows."""
        self.trace.append(row)
        self.trace_rows.append(row)
        self.advance(row.end)

    def advance(self, samples: int) -> None:
        """Notes how many samples are trained, and records the phase changes that follow."""
        for change in self.controller.advance(samples):
            self.record(
                PhaseChanged(
                    samples=change.samples,
                    before=change.before,
                    after=change.after,
                    because=change.reason,
                )
            )

    def record(self, *events: Event) -> None:
        """Adds events to events.jsonl.

        Where storage is away for a moment, the next `flush` makes them durable.
        """
        for event in events:
            self._events.append(event)
            self.events.append(event)
        try:
            self.lease.require()
            self._events.flush()
        except Exception as error:
            if not is_storage_error(error):
                raise

    def status(self, state: Literal["training", "waiting", "ended"]) -> Status:
        """Returns the run's status as it stands."""
        controller, wsa = self.controller, self.controller.plan.wsa
        seen = controller.plan.count_by_stream(0, controller.samples)
        return Status(
            owner=self.lease.owner,
            lease=self.lease.number,
            run=self.settings.run,
            state=state,
            waits_for=self.describe_wait() if state == "waiting" else None,
            corpus=self.settings.corpus_uri,
            corpus_version=self.run_plan.version,
            phase=controller.phase,
            samples=controller.samples,
            issued=controller.issued_samples,
            warmup_end=wsa.warmup_end,
            stable_end=wsa.stable_end,
            annealing_end=wsa.annealing_end,
            hold=controller.hold,
            lr=wsa.lr(min(controller.samples, wsa.annealing_end)),
            sources={f"{source}@{version}": n for (source, version), n in seen.items()},
        )

    def _controller_at(self, samples: int) -> Controller:
        return Controller(
            self.run_plan.plan,
            self.settings.global_batch_size,
            self.settings.segment_samples,
            samples,
            self.run_plan.hold,
            self.run_plan.closed,
        )


def _is_over(attempt: int, group: WorkerGroup) -> PlatformFault:
    """Returns the error of workers that wake up when another group trains."""
    return PlatformFault(
        f"attempt {attempt} is over: the workers of attempt {group.attempt} train by now"
    )

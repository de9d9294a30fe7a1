"""The controller as a Ray actor: a shell around `cprec.schedule.controller`, and the only writer of a run's plan, events, trace and state.

Every change of the plan is on storage before it takes effect, so that the actor can die at any moment: a new one reads plan.json and is told by
the next worker group from which checkpoint it goes on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import DataIterator

from cluster.errors import PlatformFault
from cluster.storage import join
from corpus.store.tables import Corpus
from cprec.runs.control_channel import Action, ControlChannel, Owner
from cprec.runs.records import EVENTS, PERPLEXITY_EVENT, TRACE, JsonLinesFile, event
from cprec.runs.run_plan import RunPlan, build_replay, remaining_portions
from cprec.schedule.controller import Controller, Segment, Wait
from cprec.schedule.plan import Plan
from cprec.stream import segments
from cprec.stream.row_encoder import RowEncoder
from cprec.stream.token_sharing import TokenSharing


@dataclass(frozen=True)
class AssignedSegment:
    """A segment and one worker's iterator of its shares."""

    segment: Segment
    iterator: DataIterator


@dataclass(frozen=True)
class WorkerGroup:
    """One start of the worker group. attempt: counts the starts that made checkpoints; world: number of workers."""

    attempt: int
    world_size: int
    samples: int
    checkpoint_uri: str | None


@dataclass(frozen=True)
class ControllerSettings:
    """What the shell needs of the recipe. batch, segment, poll: samples; cap: domain-specific samples at most; replay_share: of text up
    to S; max_tokens: of a prompt; sharing: what samples share."""

    run: str
    run_uri: str
    corpus_uri: str
    base: str
    revision: str | None
    max_tokens: int
    token_sharing: TokenSharing
    global_batch_size: int
    segment_samples: int
    poll_samples: int
    max_domain_samples: int | None
    replay_fraction: float


class ControllerActor:
    """One run's controller. Its answers depend on the plan alone, so that a restarted worker group is told the same again."""

    def __init__(self, settings: ControllerSettings, owner: Owner) -> None:
        segments.configure_ray_data()
        course = RunPlan.read(settings.run_uri)
        if course is None:
            raise PlatformFault(
                f"{settings.run_uri}: no plan.json; a run's plan is written before its controller starts"
            )
        self._settings, self._run_plan = settings, course
        self._load_corpus(Corpus.open(settings.corpus_uri))
        self._controller = self._new_controller(0)
        self._events, self._trace = (
            JsonLinesFile(join(settings.run_uri, EVENTS)),
            JsonLinesFile(join(settings.run_uri, TRACE)),
        )
        self._trace_rows: list[dict[str, Any]] = self._trace.read()
        self._perplexity_events = [
            row for row in self._events.read() if row["event"] == PERPLEXITY_EVENT
        ]
        self._group: WorkerGroup | None = None
        self._iterators: dict[int, tuple[Segment, list[DataIterator]]] = {}
        self._control_channel = ControlChannel(settings.run_uri, owner)
        self._last_poll = 0
        self._version_message = f"has corpus version {course.version}"
        self._waiting = self._stopping = False
        self._failure: Exception | None = None

    def _load_corpus(self, corpus: Corpus) -> None:
        """Take in a version of the corpus: its streams, and the titles of its items, which the read tasks share."""
        settings = self._settings
        self._streams = segments.streams_by_key(corpus)
        before = getattr(self, "_row_encoder", None)
        self._row_encoder = RowEncoder.from_corpus(
            corpus,
            settings.base,
            settings.revision,
            settings.max_tokens,
            before,
            settings.token_sharing,
        )

    def _new_controller(self, samples: int) -> Controller:
        course, settings = self._run_plan, self._settings
        return Controller(
            course.plan,
            settings.global_batch_size,
            settings.segment_samples,
            samples,
            course.hold,
            course.closed,
        )

    # -- for the workers

    def plan(self) -> Plan:
        """The plan as it stands."""
        return self._controller.plan

    def begin_attempt(self, group: WorkerGroup, ignored: list[str]) -> None:
        """A worker group starts at a checkpoint, or at 0: what was traced after it is undone, because it will be trained again."""
        self._group, self._iterators = group, {}
        self._controller = self._new_controller(group.samples)
        self._trace.retain(lambda row: bool(row["samples"] < group.samples))
        self._trace_rows = self._trace.read()
        for problem in ignored:
            self._events.append(event("checkpoint_ignored", group.samples, because=problem))
        if group.checkpoint_uri is not None:
            self._events.append(
                event(
                    "resumed",
                    group.samples,
                    **{
                        "from": group.checkpoint_uri,
                        "attempt": group.attempt,
                        "workers": group.world_size,
                    },
                )
            )
        self._events.flush()
        self.heartbeat(force=True)

    def issue_segment(
        self, attempt: int, position: int, rank: int
    ) -> AssignedSegment | Wait | None:
        """The segment at a position, with this worker's iterator; the first worker that asks starts its execution. None at the plan's end, and for
        every segment that nobody has asked for before the run was told to stop.

        Before a segment is handed out for the first time the corpus is looked at, so that what it gained joins here.
        """
        group = self._group
        if group is None or attempt != group.attempt:
            raise PlatformFault(f"a worker of attempt {attempt} asks, but {group} is training")
        if position not in self._iterators:
            if self._stopping:
                return None
            if position >= self._controller.issued_samples:
                self._check_corpus()
            segment = self._controller.issue_segment(position)
            self._waiting = isinstance(segment, Wait)
            if not isinstance(segment, Segment):
                self.heartbeat()
                return segment
            self._iterators = {
                p: kept
                for p, kept in self._iterators.items()
                if kept[0].stop > self._controller.samples
            }
            self._iterators[position] = (
                segment,
                segments.stream_segment(
                    segment, self._streams, self._row_encoder, group.world_size
                ),
            )
        segment, iterators = self._iterators[position]
        return AssignedSegment(segment, iterators[rank])

    def record_step(self, row: Mapping[str, Any]) -> bool:
        """A step is done: into the trace, and the phase follows. Returns whether the workers should stop."""
        self._require_group()
        self._trace.append(dict(row))
        self._trace_rows.append(dict(row))
        self._advance(row["samples"] + row["batch_samples"])
        return self._stopping

    def record_perplexity(self, samples: int, perplexity: float) -> None:
        """The perplexity of the plain text as the model stands after a number of samples."""
        self._require_group()
        self._perplexity_events.append(event(PERPLEXITY_EVENT, samples, perplexity=perplexity))
        self._events.append(self._perplexity_events[-1])
        self._events.flush()

    def prepare_checkpoint(self) -> Plan:
        """A checkpoint is about to be completed: the trace up to it is made durable first, because a run that resumes there never traces it again.

        Returns the plan as it stands, for the checkpoint's ledger.
        """
        self._require_group()
        self._trace.flush()
        return self._controller.plan

    def record_checkpoint(self, samples: int, uri: str) -> None:
        """A checkpoint is complete."""
        self._record_event("checkpoint_saved", samples, checkpoint=uri)

    @property
    def _is_idle(self) -> bool:
        """Whether the workers wait for new samples. They ask for the next segment before they have trained the present one."""
        return self._waiting and self._controller.samples >= self._controller.plan.wsa.stable_end

    def _require_group(self) -> None:
        """Raises PlatformFault in a controller that was started again between two steps: what its predecessor had not flushed is lost, so the group
        has to go back to its last checkpoint too."""
        if self._group is None:
            raise PlatformFault(
                "the controller was started again while workers trained; they go on from the last checkpoint"
            )

    # -- for the driver

    def progress(
        self, first_row: int, first_perplexity: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
        """Trace rows from index `since` on, perplexities (events) from index `measured` on, and whether the run waits for new samples.

        The driver's asking is the controller's pulse.
        """
        self.heartbeat()
        return (
            self._trace_rows[first_row:],
            self._perplexity_events[first_perplexity:],
            self._is_idle,
        )

    def stop(self) -> None:
        """Let the workers save a checkpoint after the step that they are in, and end."""
        self._stopping = True
        self._record_event("stopped", self._controller.samples)

    def record_failure(self, error: Exception) -> None:
        """A worker met what another try would meet again: the run ends with it, or with the first of several."""
        if self._failure is None:
            self._failure, self._stopping = error, True
            self._record_event("failed", self._controller.samples, because=str(error))

    def failure(self) -> Exception | None:
        """What the run ends with, if a worker told."""
        return self._failure

    def end_run(self) -> None:
        """The run is over for now: nobody answers requests any more."""
        self._trace.flush()
        self._control_channel.write_status(self._status("ended"))

    # -- the corpus and requests

    def heartbeat(self, force: bool = False) -> None:
        """Every few seconds: look at the corpus when that is due, answer requests, write the state."""
        if not (force or self._control_channel.is_due()) or self._group is None:
            return
        self._trace.flush()
        if (
            self._waiting
            or self._controller.samples - self._last_poll >= self._settings.poll_samples
        ):
            self._check_corpus()
        for identity, verb in self._control_channel.pending_requests():
            self._control_channel.answer(identity, self._handle_request(verb))
        self._control_channel.write_status(self._status("waiting" if self._is_idle else "training"))

    def _handle_request(self, action: Action) -> str:
        """Carry out a request; what is answered."""
        controller = self._controller
        if action == "look":
            return self._check_corpus() or self._version_message
        if not controller.is_open:
            return f"is {controller.phase}, and {self._closed_message()}"
        if action == "anneal":
            with self._rollback_on_error():
                at = controller.start_annealing()
                self._write_run_plan(
                    replace(self._run_plan, plan=controller.plan, hold=False, closed=True)
                )
            self._record_event(
                "annealing_called",
                at,
                S=controller.plan.wsa.stable_end,
                A=controller.plan.total_samples,
            )
            self._advance(controller.samples)
            return f"anneals from sample {at:,} on, to {controller.plan.total_samples:,}"
        with self._rollback_on_error():
            controller.hold = action == "hold"
            self._write_run_plan(replace(self._run_plan, hold=controller.hold))
        self._record_event("held" if controller.hold else "released", controller.samples)
        self._advance(controller.samples)
        if controller.hold:
            return f"stays in its stable phase, waiting for new domains at {controller.plan.wsa.stable_end:,} samples, until released"
        return f"anneals when its stable phase is trained, at {controller.plan.wsa.stable_end:,} samples"

    def _closed_message(self) -> str:
        return "finishes as planned; go on from its last stable checkpoint with jobs/cpt.py --continue-from"

    def _check_corpus(self) -> str | None:
        """Adopt what the corpus gained, if the plan is open. Returns what there is to say of it."""
        self._last_poll = self._controller.samples
        corpus = Corpus.open(self._settings.corpus_uri)
        if corpus.version <= self._run_plan.version:
            return None
        domain, mixed, texts = self._run_plan.new_streams(corpus)
        if not self._controller.is_open:
            return f"does not take up corpus version {corpus.version}: it is {self._controller.phase}, and {self._closed_message()}"
        before = self._controller.plan
        if not (domain or mixed or (texts and self._settings.replay_fraction)):
            self._write_run_plan(replace(self._run_plan, version=corpus.version))
            return f"has nothing to train of corpus version {corpus.version}"
        self._load_corpus(corpus)
        at = self._controller.join_position()
        again = build_replay(self._settings.replay_fraction, corpus, before.consumed_portions(at))
        with self._rollback_on_error():
            self._controller.extend_plan(
                remaining_portions(domain),
                remaining_portions(mixed),
                self._settings.max_domain_samples,
                again,
            )
            self._write_run_plan(
                self._run_plan.adopt_version(corpus, self._controller.plan, domain)
            )
        plan = self._controller.plan
        gained = {
            s.source: s.rows
            for s in (*domain, *mixed, *(texts if self._settings.replay_fraction else ()))
        }
        wsa = plan.wsa
        self._record_event(
            "corpus_version_adopted",
            at,
            version=corpus.version,
            sources=gained,
            S=wsa.stable_end,
            A=wsa.annealing_end,
            S_before=before.wsa.stable_end,
        )
        self._waiting = False
        self._version_message = f"takes up corpus version {corpus.version} at sample {at:,}: S = {wsa.stable_end:,}, A = {wsa.annealing_end:,}"
        return self._version_message

    @contextmanager
    def _rollback_on_error(self) -> Iterator[None]:
        """What is not on storage did not happen: else a retry would decide once more, on top of what nobody else knows of."""
        controller = self._controller
        before = controller.plan, controller.hold, controller.closed
        try:
            yield
        except BaseException:  # whatever storage raises
            controller.plan, controller.hold, controller.closed = before
            raise

    def _write_run_plan(self, run_plan: RunPlan) -> None:
        run_plan.write(self._settings.run_uri)
        self._run_plan = run_plan

    def _advance(self, samples: int) -> None:
        for change in self._controller.advance(samples):
            self._record_event(
                "phase_changed",
                change.samples,
                **{"from": change.before, "to": change.after, "because": change.reason},
            )

    def _record_event(self, name: str, samples: int, **values: Any) -> None:
        self._events.append(event(name, samples, **values))
        self._events.flush()

    def _status(self, state: str) -> dict[str, Any]:
        """status.json without its envelope."""
        controller, wsa = self._controller, self._controller.plan.wsa
        return {
            "run": self._settings.run,
            "state": state,
            "corpus": self._settings.corpus_uri,
            "corpus_version": self._run_plan.version,
            "phase": controller.phase,
            "samples": controller.samples,
            "issued": controller.issued_samples,
            "W": wsa.warmup_end,
            "S": wsa.stable_end,
            "A": wsa.annealing_end,
            "hold": controller.hold,
            "rate": wsa.lr(min(controller.samples, wsa.annealing_end)),
            "sources": {
                f"{source}@{version}": n
                for (source, version), n in controller.plan.count_by_stream(
                    0, controller.samples
                ).items()
            },
        }


def start_controller(settings: ControllerSettings, owner: Owner) -> Any:
    """The handle of a new controller; it ends with the driver, and is started again if it dies before."""
    return ray.remote(num_cpus=0, max_restarts=-1)(ControllerActor).remote(settings, owner)

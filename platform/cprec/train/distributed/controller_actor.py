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
from cprec.runs.control_channel import Desk, Owner, Verb
from cprec.runs.records import EVENTS, PERPLEXITY, TRACE, Lines, event
from cprec.runs.run_plan import Course, portions, replay
from cprec.schedule.controller import Controller, Segment, Wait
from cprec.schedule.plan import Plan
from cprec.stream import segments
from cprec.stream.token_sharing import Sharing


@dataclass(frozen=True)
class Handed:
    """A segment and one worker's iterator of its shares."""

    segment: Segment
    iterator: DataIterator


@dataclass(frozen=True)
class Group:
    """One start of the worker group. attempt: counts the starts that made checkpoints; world: number of workers."""

    attempt: int
    world: int
    samples: int
    checkpoint: str | None


@dataclass(frozen=True)
class Settings:
    """What the shell needs of the recipe. batch, segment, poll: samples; cap: domain-specific samples at most; replay_share: of text up
    to S; max_tokens: of a prompt; sharing: what samples share."""

    run: str
    run_uri: str
    corpus: str
    base: str
    revision: str | None
    max_tokens: int
    sharing: Sharing
    batch: int
    segment: int
    poll: int
    cap: int | None
    replay_share: float


class ControllerShell:
    """One run's controller. Its answers depend on the plan alone, so that a restarted worker group is told the same again."""

    def __init__(self, settings: Settings, owner: Owner) -> None:
        segments.configure()
        course = Course.read(settings.run_uri)
        if course is None:
            raise PlatformFault(
                f"{settings.run_uri}: no plan.json; a run's plan is written before its controller starts"
            )
        self._settings, self._course = settings, course
        self._read(Corpus.open(settings.corpus))
        self._controller = self._fresh(0)
        self._events, self._trace = (
            Lines(join(settings.run_uri, EVENTS)),
            Lines(join(settings.run_uri, TRACE)),
        )
        self._rows: list[dict[str, Any]] = self._trace.read()
        self._measured = [row for row in self._events.read() if row["event"] == PERPLEXITY]
        self._group: Group | None = None
        self._iterators: dict[int, tuple[Segment, list[DataIterator]]] = {}
        self._desk = Desk(settings.run_uri, owner)
        self._polled = 0
        self._told = f"has corpus version {course.version}"
        self._waiting = self._stopping = False
        self._failure: Exception | None = None

    def _read(self, corpus: Corpus) -> None:
        """Take in a version of the corpus: its streams, and the titles of its items, which the read tasks share."""
        settings = self._settings
        self._streams = segments.streams_of(corpus)
        before = getattr(self, "_text", None)
        self._text = segments.Text.of(
            corpus, settings.base, settings.revision, settings.max_tokens, before, settings.sharing
        )

    def _fresh(self, samples: int) -> Controller:
        course, settings = self._course, self._settings
        return Controller(
            course.plan, settings.batch, settings.segment, samples, course.hold, course.closed
        )

    # -- for the workers

    def plan(self) -> Plan:
        """The plan as it stands."""
        return self._controller.plan

    def begin(self, group: Group, ignored: list[str]) -> None:
        """A worker group starts at a checkpoint, or at 0: what was traced after it is undone, because it will be trained again."""
        self._group, self._iterators = group, {}
        self._controller = self._fresh(group.samples)
        self._trace.keep(lambda row: bool(row["samples"] < group.samples))
        self._rows = self._trace.read()
        for problem in ignored:
            self._events.add(event("checkpoint_ignored", group.samples, because=problem))
        if group.checkpoint is not None:
            self._events.add(
                event(
                    "resumed",
                    group.samples,
                    **{"from": group.checkpoint, "attempt": group.attempt, "workers": group.world},
                )
            )
        self._events.flush()
        self.beat(at_once=True)

    def segment(self, attempt: int, position: int, rank: int) -> Handed | Wait | None:
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
            if position >= self._controller.issued:
                self._look()
            segment = self._controller.segment(position)
            self._waiting = isinstance(segment, Wait)
            if not isinstance(segment, Segment):
                self.beat()
                return segment
            self._iterators = {
                p: kept
                for p, kept in self._iterators.items()
                if kept[0].stop > self._controller.samples
            }
            self._iterators[position] = (
                segment,
                segments.split(segment, self._streams, self._text, group.world),
            )
        segment, iterators = self._iterators[position]
        return Handed(segment, iterators[rank])

    def stepped(self, row: Mapping[str, Any]) -> bool:
        """A step is done: into the trace, and the phase follows. Returns whether the workers should stop."""
        self._require_group()
        self._trace.add(dict(row))
        self._rows.append(dict(row))
        self._advance(row["samples"] + row["batch_samples"])
        return self._stopping

    def measured(self, samples: int, perplexity: float) -> None:
        """The perplexity of the plain text as the model stands after a number of samples."""
        self._require_group()
        self._measured.append(event(PERPLEXITY, samples, perplexity=perplexity))
        self._events.add(self._measured[-1])
        self._events.flush()

    def saving(self) -> Plan:
        """A checkpoint is about to be completed: the trace up to it is made durable first, because a run that resumes there never traces it again.

        Returns the plan as it stands, for the checkpoint's ledger.
        """
        self._require_group()
        self._trace.flush()
        return self._controller.plan

    def saved(self, samples: int, uri: str) -> None:
        """A checkpoint is complete."""
        self._note("checkpoint_saved", samples, checkpoint=uri)

    @property
    def _idle(self) -> bool:
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
        self, since: int, measured: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
        """Trace rows from index `since` on, perplexities (events) from index `measured` on, and whether the run waits for new samples.

        The driver's asking is the controller's pulse.
        """
        self.beat()
        return self._rows[since:], self._measured[measured:], self._idle

    def stop(self) -> None:
        """Let the workers save a checkpoint after the step that they are in, and end."""
        self._stopping = True
        self._note("stopped", self._controller.samples)

    def fail(self, error: Exception) -> None:
        """A worker met what another try would meet again: the run ends with it, or with the first of several."""
        if self._failure is None:
            self._failure, self._stopping = error, True
            self._note("failed", self._controller.samples, because=str(error))

    def failure(self) -> Exception | None:
        """What the run ends with, if a worker told."""
        return self._failure

    def end(self) -> None:
        """The run is over for now: nobody answers requests any more."""
        self._trace.flush()
        self._desk.write(self._state("ended"))

    # -- the corpus and requests

    def beat(self, at_once: bool = False) -> None:
        """Every few seconds: look at the corpus when that is due, answer requests, write the state."""
        if not (at_once or self._desk.due()) or self._group is None:
            return
        self._trace.flush()
        if self._waiting or self._controller.samples - self._polled >= self._settings.poll:
            self._look()
        for identity, verb in self._desk.requests():
            self._desk.answer(identity, self._do(verb))
        self._desk.write(self._state("waiting" if self._idle else "training"))

    def _do(self, verb: Verb) -> str:
        """Carry out a request; what is answered."""
        controller = self._controller
        if verb == "look":
            return self._look() or self._told
        if not controller.open:
            return f"is {controller.phase}, and {self._closed_says()}"
        if verb == "anneal":
            with self._undone_unless_written():
                at = controller.anneal()
                self._change(replace(self._course, plan=controller.plan, hold=False, closed=True))
            self._note(
                "annealing_called", at, S=controller.plan.wsa.stable_end, A=controller.plan.samples
            )
            self._advance(controller.samples)
            return f"anneals from sample {at:,} on, to {controller.plan.samples:,}"
        with self._undone_unless_written():
            controller.hold = verb == "hold"
            self._change(replace(self._course, hold=controller.hold))
        self._note("held" if controller.hold else "released", controller.samples)
        self._advance(controller.samples)
        if controller.hold:
            return f"stays in its stable phase, waiting for new domains at {controller.plan.wsa.stable_end:,} samples, until released"
        return f"anneals when its stable phase is trained, at {controller.plan.wsa.stable_end:,} samples"

    def _closed_says(self) -> str:
        return "finishes as planned; go on from its last stable checkpoint with jobs/cpt.py --continue-from"

    def _look(self) -> str | None:
        """Adopt what the corpus gained, if the plan is open. Returns what there is to say of it."""
        self._polled = self._controller.samples
        corpus = Corpus.open(self._settings.corpus)
        if corpus.version <= self._course.version:
            return None
        domain, mixed, texts = self._course.gained(corpus)
        if not self._controller.open:
            return f"does not take up corpus version {corpus.version}: it is {self._controller.phase}, and {self._closed_says()}"
        before = self._controller.plan
        if not (domain or mixed or (texts and self._settings.replay_share)):
            self._change(replace(self._course, version=corpus.version))
            return f"has nothing to train of corpus version {corpus.version}"
        self._read(corpus)
        at = self._controller.joins_at()
        again = replay(self._settings.replay_share, corpus, before.consumed(at))
        with self._undone_unless_written():
            self._controller.adopt(portions(domain), portions(mixed), self._settings.cap, again)
            self._change(self._course.adopted(corpus, self._controller.plan, domain))
        plan = self._controller.plan
        gained = {
            s.source: s.rows
            for s in (*domain, *mixed, *(texts if self._settings.replay_share else ()))
        }
        wsa = plan.wsa
        self._note(
            "corpus_version_adopted",
            at,
            version=corpus.version,
            sources=gained,
            S=wsa.stable_end,
            A=wsa.annealing_end,
            S_before=before.wsa.stable_end,
        )
        self._waiting = False
        self._told = f"takes up corpus version {corpus.version} at sample {at:,}: S = {wsa.stable_end:,}, A = {wsa.annealing_end:,}"
        return self._told

    @contextmanager
    def _undone_unless_written(self) -> Iterator[None]:
        """What is not on storage did not happen: else a retry would decide once more, on top of what nobody else knows of."""
        controller = self._controller
        before = controller.plan, controller.hold, controller.closed
        try:
            yield
        except BaseException:  # whatever storage raises
            controller.plan, controller.hold, controller.closed = before
            raise

    def _change(self, course: Course) -> None:
        course.write(self._settings.run_uri)
        self._course = course

    def _advance(self, samples: int) -> None:
        for change in self._controller.advance(samples):
            self._note(
                "phase_changed",
                change.samples,
                **{"from": change.before, "to": change.after, "because": change.because},
            )

    def _note(self, name: str, samples: int, **values: Any) -> None:
        self._events.add(event(name, samples, **values))
        self._events.flush()

    def _state(self, state: str) -> dict[str, Any]:
        """status.json without its envelope."""
        controller, wsa = self._controller, self._controller.plan.wsa
        return {
            "run": self._settings.run,
            "state": state,
            "corpus": self._settings.corpus,
            "corpus_version": self._course.version,
            "phase": controller.phase,
            "samples": controller.samples,
            "issued": controller.issued,
            "W": wsa.warmup_end,
            "S": wsa.stable_end,
            "A": wsa.annealing_end,
            "hold": controller.hold,
            "rate": wsa.rate(min(controller.samples, wsa.annealing_end)),
            "sources": {
                f"{source}@{version}": n
                for (source, version), n in controller.plan.counts(0, controller.samples).items()
            },
        }


def start(settings: Settings, owner: Owner) -> Any:
    """The handle of a new controller; it ends with the driver, and is started again if it dies before."""
    return ray.remote(num_cpus=0, max_restarts=-1)(ControllerShell).remote(settings, owner)

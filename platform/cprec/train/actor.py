"""The controller as a Ray actor: a thin shell around `cprec.schedule.controller`, and the only writer of a run's events, trace and plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataIterator

from cluster.storage import join
from cprec.schedule.controller import Controller, Segment
from cprec.schedule.plan import Plan
from cprec.stream import segments
from cprec.train.record import EVENTS, TRACE, Lines, event


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


class ControllerShell:
    """One run's controller. Its answers depend on the plan alone, so that a restarted worker group is told the same again."""

    def __init__(self, run_uri: str, plan: Plan, batch: int, segment_samples: int, streams: segments.Streams, text: segments.Text) -> None:
        segments.configure()
        self._streams, self._text = streams, text
        self._settings = (batch, segment_samples)
        self._controller = Controller(plan, batch, segment_samples)
        self._events, self._trace = Lines(join(run_uri, EVENTS)), Lines(join(run_uri, TRACE))
        self._rows: list[dict[str, Any]] = []
        self._group: Group | None = None
        self._iterators: dict[int, list[DataIterator]] = {}

    def plan(self) -> Plan:
        """The plan as it stands."""
        return self._controller.plan

    def begin(self, group: Group, ignored: list[str]) -> None:
        """A worker group starts at a checkpoint, or at 0: what was traced after it is undone, because it will be trained again."""
        self._group, self._iterators = group, {}
        self._controller = Controller(self._controller.plan, *self._settings, samples=group.samples)
        self._trace.keep(lambda row: bool(row["samples"] < group.samples))
        self._rows = self._trace.read()
        for problem in ignored:
            self._events.add(event("checkpoint_ignored", group.samples, because=problem))
        if group.checkpoint is not None:
            self._events.add(event("resumed", group.samples, **{"from": group.checkpoint, "attempt": group.attempt, "workers": group.world}))
        self._events.flush()

    def segment(self, attempt: int, position: int, rank: int) -> Handed | None:
        """The segment at a position, with this worker's iterator; the first worker that asks starts its execution. None at the plan's end."""
        group = self._group
        if group is None or attempt != group.attempt:
            raise RuntimeError(f"a worker of attempt {attempt} asks, but {group} is training")
        segment = self._controller.segment(position)
        if segment is None:
            return None
        if position not in self._iterators:
            self._iterators = {p: it for p, it in self._iterators.items() if p >= position - 2 * self._settings[1]}
            self._iterators[position] = segments.split(segment, self._streams, self._text, group.world)
        return Handed(segment, self._iterators[position][rank])

    def stepped(self, row: Mapping[str, Any]) -> None:
        """A step is done: into the trace, and the phase follows."""
        self._trace.add(dict(row))
        self._rows.append(dict(row))
        for change in self._controller.advance(row["samples"] + row["batch_samples"]):
            self._events.add(event("phase_changed", change.samples, **{"from": change.before, "to": change.after, "because": change.because}))
            self._events.flush()

    def saved(self, samples: int, uri: str) -> None:
        """A checkpoint is complete: the trace up to it is made durable first, the event follows."""
        self._trace.flush()
        self._events.add(event("checkpoint_saved", samples, checkpoint=uri))
        self._events.flush()

    def note(self, name: str, samples: int, values: Mapping[str, Any]) -> None:
        """Add an event of the driver, durably."""
        self._trace.flush()
        self._events.add(event(name, samples, **values))
        self._events.flush()

    def progress(self, since: int) -> list[dict[str, Any]]:
        """Trace rows from index `since` on."""
        return self._rows[since:]


def start(run_uri: str, plan: Plan, batch: int, segment_samples: int, streams: segments.Streams, text: segments.Text) -> Any:
    """The handle of a new controller; it ends with the driver."""
    shell = ray.remote(num_cpus=0)(ControllerShell)
    return shell.remote(run_uri, plan, batch, segment_samples, streams, text)

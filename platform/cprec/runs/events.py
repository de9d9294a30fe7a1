"""The events of a run, one class per kind: the objects of events.jsonl. Pure."""

import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from cprec.runs.records import SINCE_0_2, SINCE_0_3, Record
from cprec.schedule.wsa import Phase


class Event(Record):
    """Something that happened to a run: an object of events.jsonl."""

    time: float = Field(
        default_factory=lambda: round(time.time(), 3), description="when it happened (Unix seconds)"
    )
    event: str = Field(description="name of the event")
    samples: int = Field(description="samples seen when it happened, or where it takes effect")
    lease: int | None = Field(
        None,
        description="number of the lease under which it was written",
        json_schema_extra=SINCE_0_3,
    )

    def details(self) -> dict[str, Any]:
        """Returns the fields of this kind of event, without those that all have."""
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in ("time", "event", "samples", "lease")
        }


class UnknownEvent(Event):
    """An event that this release does not know; its fields are kept as they are."""

    model_config = ConfigDict(extra="allow")


class RunStarted(Event):
    """A run was started for the first time."""

    event: Literal["run_started"] = "run_started"
    run: str = Field(description="name of the run")
    parent: str | None = Field(
        None, description="checkpoint that the run goes on from", json_schema_extra=SINCE_0_2
    )
    warmup_end: int = Field(alias="W", description="end of warmup (samples)")
    stable_end: int = Field(alias="S", description="end of the stable phase (samples)")
    annealing_end: int = Field(alias="A", description="end of the plan (samples)")


class CorpusVersionAdopted(Event):
    """A corpus version became part of the plan, at the start or while the run was training."""

    event: Literal["corpus_version_adopted"] = "corpus_version_adopted"
    version: int = Field(description="corpus version")
    sources: dict[str, int] = Field(
        description="samples that the plan takes of what it adds, by source"
    )
    stable_end: int = Field(alias="S", description="end of the stable phase from now on (samples)")
    annealing_end: int = Field(alias="A", description="end of the plan from now on (samples)")
    stable_end_before: int | None = Field(
        None,
        alias="S_before",
        description="end of the stable phase until now (samples); absent at the start",
        json_schema_extra=SINCE_0_2,
    )


class PhaseChanged(Event):
    """Training entered another phase."""

    event: Literal["phase_changed"] = "phase_changed"
    before: Phase = Field(alias="from", description="phase that ended")
    after: Phase = Field(alias="to", description="phase that began")
    because: str = Field(description="why, for people")


class CheckpointSaved(Event):
    """A checkpoint is complete."""

    event: Literal["checkpoint_saved"] = "checkpoint_saved"
    checkpoint: str = Field(description="URI of the checkpoint")


class CheckpointIgnored(Event):
    """A damaged or incomplete checkpoint was passed over at a start."""

    event: Literal["checkpoint_ignored"] = "checkpoint_ignored"
    because: str = Field(description="what is wrong with it, for people")


class RecordDropped(Event):
    """A damaged line of the trace or of the events was dropped at a start."""

    event: Literal["record_dropped"] = "record_dropped"
    because: str = Field(description="which line it was, and where a copy of the file is")


class Resumed(Event):
    """A worker group went on from a checkpoint."""

    event: Literal["resumed"] = "resumed"
    checkpoint: str = Field(alias="from", description="URI of the checkpoint")
    attempt: int = Field(description="number of this start of the worker group")
    workers: int = Field(description="workers of the group")


class WorkersFailed(Event):
    """A group of workers ended with an error; the next one goes on from the last checkpoint."""

    event: Literal["workers_failed"] = "workers_failed"
    attempt: int = Field(description="number of that start of the worker group")
    because: str = Field(description="what workers said, for people")
    silent: list[int] = Field(
        description="ranks that said nothing: they hung, died, or waited for others to the end"
    )


class PreemptionNoticed(Event):
    """Nodes with workers are taken away soon; a checkpoint is saved before."""

    event: Literal["preemption_noticed"] = "preemption_noticed"
    ranks: list[int] = Field(description="ranks of the workers on these nodes")
    deadline: float | None = Field(
        None, description="when they are taken away (Unix seconds), if that is known"
    )


class SamplesPadded(Event):
    """Samples are padded, because packed rows are not exact for the base."""

    event: Literal["samples_padded"] = "samples_padded"
    because: str = Field(description="what the check at the start found, for people")


class PerplexityMeasured(Event):
    """The perplexity of evaluate.text was measured."""

    event: Literal["perplexity_measured"] = "perplexity_measured"
    perplexity: float = Field(description="exp of the mean loss per token")


class AnnealingCalled(Event):
    """Somebody asked the run to anneal now."""

    event: Literal["annealing_called"] = "annealing_called"
    stable_end: int = Field(alias="S", description="end of the stable phase from now on (samples)")
    annealing_end: int = Field(alias="A", description="end of the plan from now on (samples)")
    request: str | None = Field(None, description="id of the request", json_schema_extra=SINCE_0_3)
    by: str | None = Field(None, description="who asked", json_schema_extra=SINCE_0_3)


class Held(Event):
    """Somebody asked the run to stay in its stable phase."""

    event: Literal["held"] = "held"
    by: str | None = Field(None, description="who asked", json_schema_extra=SINCE_0_3)


class Released(Event):
    """Somebody asked the run not to wait in its stable phase any more."""

    event: Literal["released"] = "released"
    by: str | None = Field(None, description="who asked", json_schema_extra=SINCE_0_3)


class VersionAnnounced(Event):
    """Somebody told the run of a new version of its corpus."""

    event: Literal["version_announced"] = "version_announced"
    by: str = Field(description="who made the version")
    answer: str = Field(description="what the run does with it, for people")


class RequestRefused(Event):
    """A request was refused, or a file was not a request."""

    event: Literal["request_refused"] = "request_refused"
    request: str = Field(description="id of the request: the name of its file without .json")
    because: str = Field(description="why, for people")


class StorageFailed(Event):
    """Storage is away for a moment; training goes on, and what is due is written later."""

    event: Literal["storage_failed"] = "storage_failed"
    because: str = Field(description="what could not be read or written, for people")


class Stopped(Event):
    """The run was interrupted, or asked to stop, and saves a checkpoint."""

    event: Literal["stopped"] = "stopped"
    by: str | None = Field(None, description="who asked", json_schema_extra=SINCE_0_3)


class Failed(Event):
    """The run ended with an error that a restart would meet again."""

    event: Literal["failed"] = "failed"
    because: str = Field(description="the error, for people")


class RunFinished(Event):
    """The plan was trained to its end."""

    event: Literal["run_finished"] = "run_finished"
    checkpoint: str = Field(description="URI of the last checkpoint")


class PromotionDecided(Event):
    """A version of the run stood at the promotion gate."""

    event: Literal["promotion_decided"] = "promotion_decided"
    version: int = Field(description="registered version")
    promoted: bool = Field(description="whether it became the champion")
    because: str = Field(description="why, for people")
    by: str | None = Field(None, description="who asked", json_schema_extra=SINCE_0_3)


EVENT_TYPES: Mapping[str, type[Event]] = {
    kind.model_fields["event"].default: kind
    for kind in (
        RunStarted,
        CorpusVersionAdopted,
        PhaseChanged,
        CheckpointSaved,
        CheckpointIgnored,
        RecordDropped,
        Resumed,
        SamplesPadded,
        WorkersFailed,
        PreemptionNoticed,
        PerplexityMeasured,
        AnnealingCalled,
        Held,
        Released,
        VersionAnnounced,
        RequestRefused,
        StorageFailed,
        Stopped,
        Failed,
        RunFinished,
        PromotionDecided,
    )
}
"""The kinds of events by name."""


def parse_event(values: Mapping[str, Any]) -> Event:
    """Reads an event as its own kind.

    An event that this release does not know, or that another release wrote with other fields,
    becomes an `UnknownEvent`.

    Raises:
        ValueError: These are no fields of an event.
    """
    if not isinstance(values.get("event"), str):
        raise ValueError(f"no kind of event: {values.get('event')!r}")
    kind = EVENT_TYPES.get(values["event"], UnknownEvent)
    try:
        return kind.from_json(values)
    except ValidationError:
        return UnknownEvent.from_json(values)

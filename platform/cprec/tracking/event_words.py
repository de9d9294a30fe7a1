"""The events of a run in words: for the terminal, the report and the console. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cprec.runs.events import (
    AnnealingCalled,
    CheckpointIgnored,
    CheckpointSaved,
    CorpusVersionAdopted,
    Event,
    Failed,
    Held,
    PerplexityMeasured,
    PhaseChanged,
    PreemptionNoticed,
    PromotionDecided,
    RecordDropped,
    Released,
    RequestRefused,
    Resumed,
    RunFinished,
    RunStarted,
    SamplesPadded,
    Stopped,
    StorageFailed,
    VersionAnnounced,
    WorkersFailed,
)
from cprec.schedule.wsa import Phase

Tone = Literal["plain", "good", "warning", "bad"]

MAX_RANKS = 8
"""Ranks that are named."""


@dataclass(frozen=True)
class EventWords:
    """An event, for people.

    Attributes:
        time: When it happened (Unix seconds).
        samples: Samples seen then, or where it takes effect.
        title: What happened, in a few words.
        text: Details; may be empty.
        tone: How it is shown.
        by: Who asked for it; None: nobody said.
    """

    time: float
    samples: int
    title: str
    text: str
    tone: Tone
    by: str | None

    def line(self) -> str:
        """Returns all of it in one line, as a terminal shows it."""
        line = f"{self.title[0].lower()}{self.title[1:]} (sample {self.samples:,})"
        return f"{line}: {self.text}" if self.text else line


def describe_events(events: Sequence[Event]) -> list[EventWords]:
    """Describes events, in order; checkpoints and perplexities are shown elsewhere."""
    shown = [e for e in events if not isinstance(e, CheckpointSaved | PerplexityMeasured)]
    return [describe_event(event) for event in shown]


def describe_event(event: Event) -> EventWords:
    """Describes an event."""
    title, text, tone = _words(event)
    by = event.details().get("by")
    return EventWords(event.time, event.samples, title, text, tone, by)


def _words(event: Event) -> tuple[str, str, Tone]:
    """Returns title, text and tone of an event."""
    match event:
        case RunStarted():
            origin = f"from {event.parent}" if event.parent else "from the base"
            return "Started", origin, "plain"
        case CorpusVersionAdopted():
            return _words_of_version(event)
        case PhaseChanged():
            is_end = event.after is Phase.DONE
            title = "Trained to the end" if is_end else f"{event.after.capitalize()} began"
            return title, event.because, "plain"
        case AnnealingCalled():
            moved = f"S = {event.stable_end:,}, A = {event.annealing_end:,}"
            return "Annealing was called", moved, "plain"
        case Held():
            return "Held open", "waits for domains at the end of its stable phase", "plain"
        case Released():
            return "Released", "anneals when its stable phase is trained", "plain"
        case VersionAnnounced():
            return "New corpus version announced", event.answer, "plain"
        case Resumed():
            return "Went on", f"{event.workers} workers, attempt {event.attempt}", "plain"
        case RunFinished():
            return "Finished", "", "good"
        case Stopped():
            return "Stopped", "a checkpoint is saved; the same command goes on", "warning"
        case PromotionDecided():
            done = "became the champion" if event.promoted else "was not promoted"
            tone: Tone = "good" if event.promoted else "warning"
            return f"Version {event.version} {done}", event.because, tone
    return _words_of_trouble(event)


def _words_of_version(event: CorpusVersionAdopted) -> tuple[str, str, Tone]:
    """Returns title, text and tone of a corpus version in the plan."""
    sources = ", ".join(f"{name} {count:,}" for name, count in event.sources.items())
    moved = f"S = {event.stable_end:,}, A = {event.annealing_end:,}"
    text = f"{sources}; {moved}" if sources else moved
    if event.stable_end_before is None:
        return f"Planned corpus version {event.version}", text, "plain"
    return f"Corpus version {event.version} joined", text, "good"


def _words_of_trouble(event: Event) -> tuple[str, str, Tone]:
    """Returns title, text and tone of an event that somebody may have to look into."""
    match event:
        case PreemptionNoticed():
            return "Nodes are taken away soon", "a checkpoint is saved before", "warning"
        case Failed():
            return "Failed", event.because, "bad"
        case WorkersFailed():
            return "Workers failed", f"{event.because}{_name_silent(event.silent)}", "bad"
        case StorageFailed():
            return "Storage is away", f"training goes on: {event.because}", "warning"
        case RequestRefused():
            return f"Request {event.request} was refused", event.because, "warning"
        case CheckpointIgnored():
            return "A checkpoint was passed over", event.because, "warning"
        case RecordDropped():
            return "A damaged record was dropped", event.because, "warning"
        case SamplesPadded():
            return "Samples are padded", event.because, "plain"
    details = event.details().items()
    text = ", ".join(f"{name} {_format_detail(value)}" for name, value in details)
    return event.event.replace("_", " ").capitalize(), text, "plain"


def _name_silent(ranks: Sequence[int]) -> str:
    """Says which workers of a failed group said nothing."""
    if not ranks:
        return ""
    named = ", ".join(str(rank) for rank in ranks[:MAX_RANKS]) + " ..." * (len(ranks) > MAX_RANKS)
    return f"; nothing was heard of rank {named}"


def _format_detail(value: Any) -> str:
    """Returns the value of a field, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_detail(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_format_detail, value)) or "none"
    return str(value)

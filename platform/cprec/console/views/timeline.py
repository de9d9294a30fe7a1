"""The events of a run as lines of a timeline, and its checkpoints. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
from cprec.schedule.wsa import WSA

MAX_ENTRIES = 200
"""Events of the timeline, the newest."""

Tone = Literal["plain", "good", "warning", "bad"]


@dataclass(frozen=True)
class TimelineEntry:
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


@dataclass(frozen=True)
class CheckpointView:
    """A checkpoint that a run says it has saved.

    Attributes:
        name: Name of its folder.
        uri: Its URI.
        samples: Samples seen.
        time: When it was complete (Unix seconds).
        is_stable: Whether a branch or a new trunk can start from it: it is not of annealing.
    """

    name: str
    uri: str
    samples: int
    time: float
    is_stable: bool


def build_timeline(events: Sequence[Event]) -> list[TimelineEntry]:
    """Returns what happened to a run, the newest first.

    Checkpoints and perplexities are shown elsewhere.
    """
    shown = [e for e in events if not isinstance(e, CheckpointSaved | PerplexityMeasured)]
    return [_describe(event) for event in reversed(shown[-MAX_ENTRIES:])]


def _describe(event: Event) -> TimelineEntry:
    title, text, tone = _words(event)
    by = event.details().get("by")
    return TimelineEntry(event.time, event.samples, title, text, tone, by)


def _words(event: Event) -> tuple[str, str, Tone]:
    """Returns title, text and tone of an event."""
    match event:
        case RunStarted():
            origin = f"from {event.parent}" if event.parent else "from the base"
            return "Started", origin, "plain"
        case CorpusVersionAdopted():
            return _words_of_version(event)
        case PhaseChanged():
            return f"{event.after.capitalize()} began", event.because, "plain"
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
            return f"Version {event.version} {done}", event.because, "good"
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
            return "Workers failed", event.because, "bad"
        case StorageFailed():
            return "Storage was away", event.because, "warning"
        case RequestRefused():
            return "A request was refused", event.because, "warning"
        case CheckpointIgnored():
            return "A checkpoint was passed over", event.because, "warning"
        case RecordDropped():
            return "A damaged record was dropped", event.because, "warning"
        case SamplesPadded():
            return "Samples are padded", event.because, "plain"
    text = ", ".join(f"{name} {value}" for name, value in event.details().items())
    return event.event.replace("_", " ").capitalize(), text, "plain"


def list_checkpoint_views(
    events: Sequence[Event], names: Sequence[str], wsa: WSA | None
) -> list[CheckpointView]:
    """Returns the checkpoints of a run that are there, the newest first.

    Args:
        events: Events of the run.
        names: Names of the folders of checkpoints.
        wsa: Schedule of the plan; None where there is no plan.
    """
    saved = {
        event.checkpoint.rpartition("/")[2]: event
        for event in events
        if isinstance(event, CheckpointSaved)
    }
    return [
        CheckpointView(
            name,
            event.checkpoint,
            event.samples,
            event.time,
            is_stable=wsa is not None and event.samples <= wsa.stable_end,
        )
        for name, event in sorted(saved.items(), reverse=True)
        if name in names
    ]


def list_perplexities(events: Sequence[Event]) -> list[tuple[int, float]]:
    """Returns (samples, perplexity of evaluate.text), in order; each position counts once."""
    measured = {e.samples: e.perplexity for e in events if isinstance(e, PerplexityMeasured)}
    return sorted(measured.items())

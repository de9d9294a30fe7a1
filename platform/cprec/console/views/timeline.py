"""The events of a run as a timeline, and its checkpoints. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from cprec.runs.events import CheckpointSaved, Event, PerplexityMeasured
from cprec.schedule.wsa import WSA
from cprec.tracking.event_words import EventWords, describe_events

MAX_ENTRIES = 200
"""Events of the timeline, the newest."""


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


def build_timeline(events: Sequence[Event]) -> list[EventWords]:
    """Returns what happened to a run, the newest first."""
    return describe_events(events)[: -MAX_ENTRIES - 1 : -1]


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

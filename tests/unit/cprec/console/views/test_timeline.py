"""Every kind of event has words, and a checkpoint that is gone is not listed."""

import typing
from typing import Any

import pytest

from cprec.console.views.timeline import (
    MAX_ENTRIES,
    build_timeline,
    list_checkpoint_views,
    list_perplexities,
)
from cprec.runs.events import (
    EVENT_TYPES,
    CheckpointSaved,
    Event,
    Held,
    PerplexityMeasured,
    Stopped,
    UnknownEvent,
    VersionAnnounced,
)
from cprec.schedule.wsa import WSA, Phase

EXAMPLES: dict[Any, Any] = {int: 7, str: "text", float: 1.5, bool: True, Phase: Phase.STABLE}


def example(kind: type[Event]) -> Event:
    """Makes an event of a kind, with some value in each field that has to be there."""
    values: dict[str, Any] = {"event": kind.model_fields["event"].default, "samples": 5}
    for name, field in kind.model_fields.items():
        if field.is_required() and name not in values:
            empty = typing.get_origin(field.annotation)  # dict or list
            values[field.alias or name] = empty() if empty else EXAMPLES[field.annotation]
    return kind.from_json(values)


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=lambda kind: kind.__name__)
def test_every_event_has_words(kind: type[Event]) -> None:
    entries = build_timeline([example(kind)])
    if kind in (CheckpointSaved, PerplexityMeasured):
        assert entries == []
        return
    [entry] = entries
    assert entry.title
    assert "_" not in entry.title
    assert entry.samples == 5


def test_an_event_of_another_release_is_shown_with_its_fields() -> None:
    event = UnknownEvent.from_json({"event": "moon_rose", "samples": 1, "phase": "full"})
    [entry] = build_timeline([event])
    assert (entry.title, entry.text) == ("Moon rose", "phase full")


def test_the_newest_comes_first_with_who_asked() -> None:
    events: list[Event] = [
        Held(samples=1, by="console (Ada)"),
        VersionAnnounced(samples=2, by="Bob", answer="takes it up"),
        Stopped(samples=3),
    ]
    assert [e.by for e in build_timeline(events)] == [None, "Bob", "console (Ada)"]
    assert len(build_timeline([Held(samples=i) for i in range(2 * MAX_ENTRIES)])) == MAX_ENTRIES


def test_checkpoints_that_are_there_are_listed_newest_first() -> None:
    names = ["000000000100-0", "000000000200-0", "000000000300-0"]
    saved = [CheckpointSaved(samples=int(n[:12]), checkpoint=f"s3://b/r/{n}") for n in names]
    views = list_checkpoint_views(saved, names[1:], WSA(1e-5, 1e-3, 10, 200, 400))
    assert [(v.samples, v.is_stable) for v in views] == [(300, False), (200, True)]
    assert not any(v.is_stable for v in list_checkpoint_views(saved, names, None))


def test_a_perplexity_that_was_measured_again_counts_once() -> None:
    measured = [PerplexityMeasured(samples=s, perplexity=p) for s, p in ((9, 4.0), (1, 8), (9, 5))]
    assert list_perplexities(measured) == [(1, 8.0), (9, 5.0)]

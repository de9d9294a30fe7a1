"""The picture of a run's schedule: learning rate, sources, and where versions joined. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cprec.runs.events import AnnealingCalled, CorpusVersionAdopted, Event
from cprec.schedule.plan import Plan
from cprec.schedule.wsa import WSA

BINS = 120
"""Slices of the plan whose sources are counted, at most."""

CURVE_POINTS = 60
"""Points of a part of the curve of the learning rate that is bent."""


@dataclass(frozen=True)
class SourceBand:
    """A source, and its fraction of each slice of the plan.

    Attributes:
        source: Its name.
        fractions: Fraction of the samples of each slice (0 to 1).
    """

    source: str
    fractions: Sequence[float]


@dataclass(frozen=True)
class Join:
    """A corpus version that joined a run under way, or annealing that was called.

    Attributes:
        samples: Samples from which on it is trained.
        label: What happened, for people.
        stable_end_before: S until then (samples).
        stable_end: S from then on (samples).
    """

    samples: int
    label: str
    stable_end_before: int | None
    stable_end: int


@dataclass(frozen=True)
class ScheduleView:
    """The schedule of a plan.

    Attributes:
        warmup_end: W (samples).
        stable_end: S (samples).
        annealing_end: A (samples).
        lr_max: Highest learning rate.
        curve: Points (samples, learning rate), from 0 to A.
        edges: Ends of the slices (samples), from 0 on: one more than there are slices.
        bands: The sources, in the order in which they come.
        joins: What moved S and A, in order.
    """

    warmup_end: int
    stable_end: int
    annealing_end: int
    lr_max: float
    curve: Sequence[tuple[int, float]]
    edges: Sequence[int]
    bands: Sequence[SourceBand]
    joins: Sequence[Join]


def build_schedule(plan: Plan, events: Sequence[Event]) -> ScheduleView:
    """Builds the picture of a plan and of the events that changed it."""
    wsa = plan.wsa
    edges = _slice(wsa)
    return ScheduleView(
        warmup_end=wsa.warmup_end,
        stable_end=wsa.stable_end,
        annealing_end=wsa.annealing_end,
        lr_max=wsa.lr_max,
        curve=[(samples, wsa.lr(samples)) for samples in _curve_positions(wsa)],
        edges=edges,
        bands=_count_bands(plan, edges),
        joins=list_joins(events),
    )


def _curve_positions(wsa: WSA) -> list[int]:
    """Returns where the learning rate is drawn: at each end of a phase, and between them."""
    ends = [0, wsa.warmup_end, wsa.stable_end, wsa.annealing_end]
    positions = set(ends)
    for start, stop in pairwise(ends):
        positions |= {start + (stop - start) * i // CURVE_POINTS for i in range(CURVE_POINTS)}
    return sorted(positions)


def _slice(wsa: WSA) -> list[int]:
    """Cuts 0..A into slices of about one length; none goes beyond the end of the stable phase."""
    size = max(1, -(-wsa.annealing_end // BINS))
    stable = range(0, wsa.stable_end, size)
    annealing = range(wsa.stable_end, wsa.annealing_end, size)
    return [*stable, *annealing, wsa.annealing_end]


def _count_bands(plan: Plan, edges: Sequence[int]) -> list[SourceBand]:
    counts: list[Counter[str]] = []
    for start, stop in pairwise(edges):
        by_source: Counter[str] = Counter()
        for (source, _), samples in plan.count_by_stream(start, stop).items():
            by_source[str(source)] += samples
        counts.append(by_source)
    sources = dict.fromkeys(source for by_source in counts for source in by_source)
    return [
        SourceBand(source, [_fraction(by_source, source) for by_source in counts])
        for source in sources
    ]


def _fraction(by_source: Counter[str], source: str) -> float:
    total = by_source.total()
    return round(by_source[source] / total, 4) if total else 0.0


def list_joins(events: Sequence[Event]) -> list[Join]:
    """Lists what changed the plan after the start: versions that joined, and annealing called."""
    joins = []
    for event in events:
        if isinstance(event, CorpusVersionAdopted) and event.stable_end_before is not None:
            names = ", ".join(source.rpartition("/")[2] for source in event.sources)
            label = f"v{event.version}: {names}" if names else f"v{event.version}"
            joins.append(Join(event.samples, label, event.stable_end_before, event.stable_end))
        elif isinstance(event, AnnealingCalled):
            joins.append(Join(event.samples, "annealing called", None, event.stable_end))
    return joins

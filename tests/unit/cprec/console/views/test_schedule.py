"""The picture of a schedule covers the whole plan, and its shares are those of the plan."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cprec.console.views.schedule import BINS, build_schedule
from cprec.runs.events import AnnealingCalled, CorpusVersionAdopted
from cprec.schedule.plan import Era, Plan, Portion
from cprec.schedule.wsa import WSA


def plan(first: int, second: int, mixed: int) -> Plan:
    stable = first + second
    counts = {"domain/A": first, "domain/B": second}
    parts = tuple(Portion(name, 0, 0, count) for name, count in counts.items() if count)
    eras = (
        Era(0, stable, parts, seed=0),
        Era(stable, stable + mixed, (Portion("mixed", 0, 0, mixed),), seed=0),
    )
    return Plan(eras, WSA(1e-5, 1e-3, stable // 10, stable, stable + mixed))


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 400))
def test_slices_cover_the_plan_and_hold_its_samples(first: int, second: int, mixed: int) -> None:
    made = plan(first, second, mixed)
    view = build_schedule(made, ())
    assert (view.edges[0], view.edges[-1]) == (0, made.total_samples)
    assert list(view.edges) == sorted(set(view.edges))
    assert made.wsa.stable_end in view.edges
    assert len(view.edges) <= BINS + 3
    sizes = np.diff(view.edges)
    for band in view.bands:
        by_stream = made.count_by_stream(0, made.total_samples)
        planned = sum(n for (source, _), n in by_stream.items() if source == band.source)
        assert (
            abs(float(sizes @ np.array(band.fractions)) - planned) < 0.01 * made.total_samples + 1
        )
    assert view.curve[0] == (0, made.wsa.lr(0))
    assert view.curve[-1][0] == made.total_samples
    assert max(lr for _, lr in view.curve) == made.wsa.lr_max


def test_what_moved_the_ends_is_marked() -> None:
    start = CorpusVersionAdopted(
        samples=0, version=0, sources={"domain/A": 9}, stable_end=9, annealing_end=19
    )
    joined = CorpusVersionAdopted(
        samples=4, version=1, sources={"domain/B": 5, "mixed": 3}, stable_end=14,
        annealing_end=27, stable_end_before=9,
    )  # fmt: skip
    called = AnnealingCalled(samples=6, stable_end=6, annealing_end=19)
    joins = build_schedule(plan(9, 5, 13), (start, joined, called)).joins
    assert [(j.samples, j.label) for j in joins] == [(4, "v1: B, mixed"), (6, "annealing called")]
    assert (joins[0].stable_end_before, joins[0].stable_end) == (9, 14)

"""The controller hands out the whole plan once, wherever it is asked to begin, and enters each phase in turn."""

from hypothesis import given
from hypothesis import strategies as st

from cprec.schedule.controller import Controller, Segment
from cprec.schedule.plan import Plan, Portion, make
from cprec.schedule.wsa import Phase


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    counts = draw(st.lists(st.integers(0, 300), min_size=1, max_size=4))
    domain = [Portion(f"domain/{i}", 0, 0, n) for i, n in enumerate([*counts, 1])]
    mixed = [Portion("mixed", 0, 0, draw(st.integers(0, 300)))]
    return make(domain, mixed, draw(st.integers(0, 99)), (1e-5, 1e-3), draw(st.floats(0, 1)), None)


def walk(controller: Controller, position: int) -> list[Segment]:
    found = []
    while (segment := controller.segment(position)) is not None:
        found.append(segment)
        position = segment.stop
    return found


@given(plans(), st.integers(1, 70), st.integers(1, 200))
def test_segments_cover_the_plan_and_never_cross_a_change_of_source(plan: Plan, batch: int, segment_samples: int) -> None:
    segments = walk(Controller(plan, batch, segment_samples), 0)
    steps = [step for segment in segments for step in segment.batches()]
    assert [p for a, b in steps for p in range(a, b)] == list(range(plan.samples))
    assert all(s.era.start <= s.start < s.stop <= s.era.stop for s in segments)
    assert plan.wsa.stable_end in {stop for _, stop in steps}


@given(plans(), st.integers(1, 70), st.integers(1, 200), st.integers(1, 200), st.data())
def test_a_restart_at_any_step_goes_on_with_the_same_steps(plan: Plan, batch: int, before: int, after: int, data: st.DataObject) -> None:
    steps = [step for segment in walk(Controller(plan, batch, before), 0) for step in segment.batches()]
    at = data.draw(st.sampled_from(steps))[0]
    rest = [step for segment in walk(Controller(plan, batch, after, samples=at), at) for step in segment.batches()]
    assert rest == [step for step in steps if step[0] >= at]


@given(plans(), st.integers(1, 70))
def test_each_phase_is_entered_once_in_order_and_says_why(plan: Plan, batch: int) -> None:
    controller = Controller(plan, batch, batch)
    first = controller.phase
    changes = [c for segment in walk(controller, 0) for _, stop in segment.batches() for c in controller.advance(stop)]
    order = list(Phase)
    assert [c.before for c in changes] + [changes[-1].after] == order[order.index(first) :]
    assert controller.phase.is_terminal
    assert all(" -> " in str(c) and "because" in str(c) for c in changes)


def test_a_restart_does_not_enter_a_phase_again() -> None:
    plan = make([Portion("domain/A", 0, 0, 100)], [Portion("mixed", 0, 0, 50)], 0, (1e-5, 1e-3), 0.1, None)
    controller = Controller(plan, 10, 10, samples=100)
    assert controller.phase is Phase.ANNEALING
    assert controller.advance(110) == []

"""Whatever joins a plan, and whatever its cap: its annealing phase never becomes shorter."""

import json
from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, Replay, build_plan, extend_plan, start_annealing

sizes = st.tuples(st.integers(0, 400), st.integers(0, 200))
"""(domain-specific, mixed) samples."""
caps = st.one_of(st.none(), st.integers(1, 900))


def append(
    plan: Plan, number: int, size: tuple[int, int], position: int, cap: int | None, fraction: float
) -> Plan:
    """Appends samples to a plan as version `number`, with as many windows of text."""
    domain, mixed = size
    return extend_plan(
        plan,
        position,
        [Portion(f"domain/{number}", number, 0, domain)],
        [Portion("mixed", number, 0, mixed)],
        cap,
        Replay(fraction, (Portion("text/a", number, 0, domain + 1),) if fraction else ()),
    )


@given(
    st.tuples(st.integers(1, 400), st.integers(0, 200)),
    st.lists(st.tuples(sizes, caps), max_size=5),
    caps,
    st.sampled_from([0.0, 0.3]),
    st.data(),
)
def test_annealing_never_shrinks_because_something_joined(
    first: tuple[int, int],
    appends: list[tuple[tuple[int, int], int | None]],
    cap: int | None,
    fraction: float,
    data: st.DataObject,
) -> None:
    settings = PlanSettings(3, 1e-5, 1e-3, 0.05, cap)
    domain, mixed = first
    plan = build_plan(
        settings, [Portion("domain/0", 0, 0, domain)], [Portion("mixed", 0, 0, mixed)]
    )
    position = plan.wsa.warmup_end
    for number, (size, next_cap) in enumerate(appends, 1):
        stable_end = plan.wsa.stable_end
        position = data.draw(st.integers(min(position, stable_end), stable_end))
        used_cap = data.draw(st.sampled_from([cap, next_cap]))
        after = append(plan, number, size, position, used_cap, fraction)
        assert after.annealing_samples >= plan.annealing_samples
        # Nor where it is called at the same position, before or after the append.
        early = start_annealing(plan, position).annealing_samples
        assert start_annealing(after, position).annealing_samples >= early
        assert after == Plan.from_json(json.loads(json.dumps(after.to_json())))
        plan = after
    assert plan.wsa.lr(plan.wsa.stable_end) == settings.lr_max
    assert sum(plan.count_by_stream(0, plan.total_samples).values()) == plan.total_samples


@given(sizes, st.integers(0, 3000))
@example((40_000, 0), 3000)
@example((160_000, 9), 2048)
def test_a_capped_run_that_platforms_join_anneals_as_long_as_before(
    size: tuple[int, int], position: int
) -> None:
    settings = PlanSettings(0, 5e-6, 1e-2, 0.05, 3000)
    plan = build_plan(
        settings, [Portion("domain/A", 0, 0, 26_403)], [Portion("mixed", 0, 0, 1_471)]
    )
    assert (plan.wsa.stable_end, plan.total_samples) == (3000, 3167)
    after = append(plan, 1, size, max(position, plan.wsa.warmup_end), 3000, 0.0)
    assert after.wsa.stable_end == 3000
    assert after.total_samples >= 3167


def test_a_plan_of_an_earlier_release_anneals_in_the_proportion_of_its_samples() -> None:
    settings = PlanSettings(0, 1e-5, 1e-3, 0.05, 100)
    plan = build_plan(settings, [Portion("domain/A", 0, 0, 300)], [Portion("mixed", 0, 0, 60)])
    values = plan.to_json()
    del values["mixed_ratio"]
    earlier = Plan.from_json(values)
    assert earlier == replace(plan, mixed_ratio=None)
    for position in (10, 50, 100):
        assert start_annealing(earlier, position).annealing_samples == position // 5
        joined = append(earlier, 1, (500, 0), position, 100, 0.0)
        assert joined == append(plan, 1, (500, 0), position, 100, 0.0)


@given(
    st.tuples(st.integers(1, 400), st.integers(0, 200)),
    st.lists(sizes, max_size=4),
    caps,
    st.sampled_from([0.2, 0.4, 0.5]),
    st.data(),
)
def test_a_share_of_annealing_holds_for_what_joins(
    first: tuple[int, int],
    appends: list[tuple[int, int]],
    cap: int | None,
    share: float,
    data: st.DataObject,
) -> None:
    """As far as there are mixed samples, and never by training fewer than were planned."""
    domain, available = first
    plan = build_plan(
        PlanSettings(3, 1e-5, 1e-3, 0.05, cap, annealing_share=share),
        [Portion("domain/0", 0, 0, domain)],
        [Portion("mixed", 0, 0, available)],
    )
    ratio = plan.mixed_ratio
    assert ratio is not None
    position = plan.wsa.warmup_end
    for number, (more, more_mixed) in enumerate(appends, 1):
        before = plan.annealing_samples
        position = data.draw(st.integers(position, plan.wsa.stable_end))
        plan = extend_plan(
            plan,
            position,
            [Portion(f"domain/{number}", number, 0, more)],
            [Portion("mixed", number, 0, more_mixed)],
            cap,
            annealing_share=share,
        )
        available += more_mixed
        wanted = int(ratio * plan.wsa.stable_end)
        assert plan.annealing_samples == min(available, max(wanted, before))
        assert plan.mixed_ratio == ratio
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    early = start_annealing(plan, position)
    assert early.annealing_samples == min(available, int(ratio * position))

"""What is said of a cap and of a short annealing phase is what the plan does."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cprec.schedule.plan import Plan, Portion
from cprec.schedule.plan_notes import (
    annealing_warning,
    count_domain_samples,
    describe_cap,
    describe_joined,
    describe_plan,
)
from cprec.schedule.planning import PlanSettings, Replay, build_plan, extend_plan
from cprec.schedule.wsa import Mode


def plan_of(domain: int, mixed: int, cap: int | None = None, mode: Mode = Mode.WSA) -> Plan:
    return build_plan(
        PlanSettings(0, 1e-5, 1e-3, 0.05, cap, mode),
        [Portion("domain/A", 0, 0, domain)],
        [Portion("mixed", 0, 0, mixed)],
        replay=Replay(0.2, (Portion("text/a", 0, 0, 20),)),
    )


@given(st.integers(1, 500), st.integers(0, 100), st.sampled_from([0.0, 0.05, 0.5]))
def test_a_plan_warns_exactly_if_its_annealing_is_below_the_share(
    domain: int, mixed: int, share: float
) -> None:
    plan = plan_of(domain, mixed)
    warning = annealing_warning(plan, share, 32)
    assert (warning is not None) == (plan.annealing_samples < share * plan.total_samples)
    if warning is not None:
        assert ("schedule.mode domain_only" in warning) == (mixed == 0)
        assert f"annealing is {plan.annealing_samples:,} of {plan.total_samples:,}" in warning


def test_a_schedule_without_annealing_does_not_warn() -> None:
    assert annealing_warning(plan_of(100, 10, mode=Mode.DOMAIN_ONLY), 0.5, 32) is None


@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 300), st.data())
def test_what_is_announced_before_an_append_holds_after_it(
    domain: int, joining: int, cap: int, data: st.DataObject
) -> None:
    plan = plan_of(domain, 50, cap)
    issued = data.draw(st.integers(plan.wsa.warmup_end, plan.wsa.stable_end))
    announced = describe_cap("trunk", plan, issued, cap)
    after = extend_plan(plan, issued, [Portion("domain/B", 1, 0, joining)], [], cap)
    planned = after.count_by_stream(0, after.total_samples).get(("domain/B", 1), 0)
    left = cap - count_domain_samples(plan, issued)
    assert planned <= max(left, 0)
    assert (f"at most {left:,} samples" if left > 0 else "no domain-specific sample") in announced
    said = describe_joined(after, issued, {("domain/B", 1): joining}, cap)
    if planned == joining:
        assert said == ""
    else:
        assert said.startswith(f"{planned:,} of its {joining:,}" if planned else "none of its")


@given(
    st.integers(1, 500),
    st.integers(0, 300),
    st.sampled_from([0.1, 0.2, 0.4, 0.5, 0.9]),
    st.one_of(st.none(), st.integers(1, 600)),
)
def test_a_share_of_annealing_is_planned_or_its_lack_is_said(
    domain: int, mixed: int, share: float, cap: int | None
) -> None:
    settings = PlanSettings(0, 1e-5, 1e-3, 0.05, cap, annealing_share=share)
    plan = build_plan(
        settings,
        [Portion("domain/A", 0, 0, domain)],
        [Portion("mixed", 0, 0, mixed)],
        replay=Replay(0.2, (Portion("text/a", 0, 0, 20),)),
    )
    # In tenths, as the shares are, so that nothing is rounded twice.
    tenths = round(share * 10)
    wanted = min(domain, cap or domain) * tenths // (10 - tenths)
    assert plan.annealing_samples == min(wanted, mixed)
    said = describe_plan(plan, 32, 0.0, 0.0, share)
    assert ("schedule.annealing_share asks for" in said) == (mixed < wanted)
    if found := re.search(r"with train\.max_samples ([0-9,]+) they would", said):
        fewer = build_plan(
            replace(settings, max_domain_samples=int(found[1].replace(",", ""))),
            [Portion("domain/A", 0, 0, domain)],
            [Portion("mixed", 0, 0, mixed)],
        )
        assert "asks for" not in describe_plan(fewer, 32, 0.0, 0.0, share)

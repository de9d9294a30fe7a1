"""The gate: what it refuses, what it lets through, and what it says of each of its lines."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cprec.config.sections.evaluation import GateSettings
from cprec.evaluation.gate import Decision, Measurements, decide
from cprec.evaluation.metrics import Metrics
from cprec.evaluation.significance import PairedTest, wilson_lower_bound

CHANCE = 0.05


def measured(hr1: float | None, n: int = 1000, **slices: float | None) -> Metrics:
    return {
        "model": "version-1",
        "domain": "Music",
        "n": n,
        "hr": {"1": hr1},
        "ndcg": {},
        "valid_ratio": {"exact": None, "llara": None},
        "hr1_of_valid": None,
        "slices": {
            name: {"n": n, "hr": {"1": value}, "ndcg": {}} for name, value in slices.items()
        },
        "mode": "score",
    }


def against(difference: float, p: float) -> PairedTest:
    return PairedTest(1000, difference, difference - 0.01, difference + 0.01, p, 0.95)


def judge(hr1: float | None, n: int = 1000, **gate: Any) -> Decision:
    return decide(Measurements(measured(hr1, n), CHANCE), GateSettings(**gate))


def refused(decision: Decision) -> list[str]:
    """Keys of the lines that refused."""
    assert decision.promote is not any(not line.passed for line in decision.lines)
    return [line.key for line in decision.lines if not line.passed]


@pytest.mark.parametrize(
    ("candidate", "champion", "difference", "p", "floor", "keys", "because"),
    [
        (0.30, None, 0, 1, 0.0, [], "no champion before"),
        (0.30, None, 0, 1, 0.4, ["gate.min_hr1"], "wanted HR@1 of 0.4000, seen 0.3000"),
        (0.30, 0.20, 0.1, 0.001, 0.4, ["gate.min_hr1"], "0.3000"),
        (0.30, 0.30, 0.0, 1.0, 0.3, [], "no worse"),
        (0.30, 0.31, -0.01, 0.3, 0.0, [], "no worse"),
        (0.30, 0.29, 0.01, 0.3, 0.0, [], "no worse"),
        (0.30, 0.31, -0.01, 0.05, 0.0, [], "no worse"),  # at the level is not below it
        (0.30, 0.40, -0.1, 0.001, 0.0, ["gate.alpha"], "against the champion's 0.4000"),
        (0.30, 0.20, 0.1, 0.001, 0.0, [], "better"),
    ],
)
def test_gate(
    candidate: float,
    champion: float | None,
    difference: float,
    p: float,
    floor: float,
    keys: list[str],
    because: str,
) -> None:
    known = Measurements(measured(candidate), CHANCE)
    if champion is not None:
        known = replace(known, champion=measured(champion), paired_test=against(difference, p))
    decision = decide(known, GateSettings(min_hr1=floor, alpha=0.05))
    assert refused(decision) == keys
    assert because in decision.reason
    numbers = {"hr1": candidate, "n": 1000, "chance": CHANCE}
    if champion is not None:
        numbers |= {"champion_hr1": champion, "difference": difference, "p": p}
    assert decision.numbers == numbers


@pytest.mark.parametrize(
    ("hr1", "n", "keys"),
    [
        (0.01, 1000, ["gate.above_chance"]),
        (0.0, 1000, ["gate.above_chance"]),
        (0.05, 100_000, ["gate.above_chance"]),
        (0.055, 1000, ["gate.above_chance"]),
        (0.055, 100_000, []),
        (0.3856, 612, []),
        (1.0, 99, ["gate.min_samples"]),
        (0.01, 99, ["gate.min_samples", "gate.above_chance"]),
        (None, 0, ["gate.min_samples", "gate.min_hr1"]),
    ],
)
def test_without_a_champion_more_than_chance_is_asked_for(
    hr1: float | None, n: int, keys: list[str]
) -> None:
    decision = judge(hr1, n)
    assert refused(decision) == keys
    for key in keys:
        assert f"{key}: wanted " in decision.reason


def test_the_first_champion_may_be_replaced_only_by_more_than_chance() -> None:
    """Both are far below chance, and no worse than each other."""
    known = Measurements(measured(0.0), CHANCE, measured(0.0), against(0.0, 1.0))
    assert refused(decide(known, GateSettings())) == ["gate.above_chance"]


def test_both_lines_can_be_turned_off() -> None:
    assert judge(0.01, 10, min_samples=1, above_chance=False).promote


def test_every_line_says_what_was_wanted_and_seen() -> None:
    shown = [str(line) for line in judge(0.01).lines]
    assert shown == [
        "passed: gate.min_samples: wanted 100 samples or more; seen 1,000",
        "REFUSED: gate.above_chance: wanted HR@1 above chance (0.0500) with 95.0% confidence; "
        "seen 0.0100, at least 0.0060",
    ]


@given(st.integers(1, 500), st.data())
def test_the_lower_bound_is_that_of_wilson(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    # The lower end of a two-sided interval of 90 % is the one-sided bound of 95 %.
    expected = binomtest(hits, n).proportion_ci(0.9, "wilson").low
    assert wilson_lower_bound(hits / n, n, 0.95) == pytest.approx(max(expected, 0.0), abs=1e-9)


@pytest.mark.parametrize(
    ("sparse", "max_drop", "promoted"),
    [
        (0.20, None, True),
        (0.20, 0.1, True),
        (0.19, 0.1, False),
        (None, 0.1, True),
        (0.25, 0.05, True),
    ],
)
def test_a_slice_may_not_fall_further_than_the_gate_lets_it(
    sparse: float | None, max_drop: float | None, promoted: bool
) -> None:
    champion = measured(0.30, sparse=0.30, dense=0.30)
    candidate = measured(0.35, sparse=sparse, dense=0.40)
    known = Measurements(candidate, CHANCE, champion, against(0.05, 0.001))
    decision = decide(known, GateSettings(max_slice_drop=max_drop))
    assert decision.promote is promoted
    if not promoted:
        assert "sparse histories 0.3000 -> 0.1900" in decision.reason


@pytest.mark.parametrize(("ratio", "promoted"), [(None, True), (0.5, False), (0.95, True)])
def test_answers_must_be_candidates(ratio: float | None, promoted: bool) -> None:
    known = Measurements(measured(0.3), CHANCE, valid_ratio=ratio)
    decision = decide(known, GateSettings(min_valid_ratio=0.95))
    assert decision.promote is promoted
    assert promoted or "gate.min_valid_ratio" in decision.reason


@pytest.mark.parametrize(
    ("forgetting", "max_forgetting", "promoted"),
    [(0.2, None, True), (0.2, 0.2, True), (0.21, 0.2, False), (-0.1, 0.0, True)],
)
def test_a_model_may_not_forget_more_than_the_gate_lets_it(
    forgetting: float, max_forgetting: float | None, promoted: bool
) -> None:
    known = Measurements(measured(0.3), CHANCE, forgetting=forgetting)
    decision = decide(known, GateSettings(max_forgetting=max_forgetting))
    assert decision.promote is promoted
    if not promoted:
        assert "above the base's, seen +21.0%" in decision.reason
        assert decision.numbers["forgetting"] == 0.21

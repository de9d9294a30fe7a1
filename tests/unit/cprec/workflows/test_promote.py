"""The gate: what it refuses, what it lets through, and why."""

from typing import Any

import pytest

from cprec.config.recipe import GateSettings
from cprec.evaluate.significance import PairedTest
from cprec.workflows.promote import decide


def measured(hr1: float | None) -> dict[str, Any]:
    return {"n": 0 if hr1 is None else 1000, "hr": {"1": hr1}}


def against(difference: float, p: float) -> PairedTest:
    return PairedTest(1000, difference, difference - 0.01, difference + 0.01, p, 0.95)


@pytest.mark.parametrize(
    ("candidate", "champion", "difference", "p", "floor", "promoted", "because"),
    [
        (None, None, 0, 1, 0.0, False, "no samples"),
        (0.30, None, 0, 1, 0.0, True, "no champion yet"),
        (0.30, None, 0, 1, 0.4, False, "below the floor"),
        (0.30, 0.20, 0.1, 0.001, 0.4, False, "below the floor"),
        (0.30, 0.30, 0.0, 1.0, 0.3, True, "no worse"),
        (0.30, 0.31, -0.01, 0.3, 0.0, True, "no worse"),
        (0.30, 0.29, 0.01, 0.3, 0.0, True, "no worse"),
        (0.30, 0.31, -0.01, 0.05, 0.0, True, "no worse"),  # at the level is not below it
        (0.30, 0.40, -0.1, 0.001, 0.0, False, "worse at the level"),
        (0.30, 0.20, 0.1, 0.001, 0.0, True, "better"),
    ],
)
def test_gate(
    candidate: float | None,
    champion: float | None,
    difference: float,
    p: float,
    floor: float,
    promoted: bool,
    because: str,
) -> None:
    decision = decide(
        measured(candidate),
        None if champion is None else measured(champion),
        None if champion is None else against(difference, p),
        GateSettings(min_hr1=floor, alpha=0.05),
    )
    assert decision.promote is promoted
    assert because in decision.reason
    if champion is not None and because != "below the floor":
        assert decision.numbers == {
            "hr1": candidate,
            "n": 1000,
            "champion_hr1": champion,
            "difference": difference,
            "p": p,
        }


def sliced(hr1: float, **slices: float | None) -> dict[str, Any]:
    return {
        "n": 1000,
        "hr": {"1": hr1},
        "slices": {name: {"hr": {"1": value}} for name, value in slices.items()},
    }


@pytest.mark.parametrize(
    ("sparse", "max_drop", "promoted"),
    [(0.20, None, True), (0.20, 0.1, True), (0.19, 0.1, False), (None, 0.1, True)],
)
def test_a_slice_may_not_fall_further_than_the_gate_lets_it(
    sparse: float | None, max_drop: float | None, promoted: bool
) -> None:
    champion = sliced(0.30, sparse=0.30, dense=0.30)
    candidate = sliced(0.35, sparse=sparse, dense=0.40)
    gate = GateSettings(max_slice_drop=max_drop)
    decision = decide(candidate, champion, against(0.05, 0.001), gate)
    assert decision.promote is promoted
    if not promoted:
        assert "sparse histories fell from 0.3000 to 0.1900" in decision.reason
        assert decision.numbers["sparse_hr1"] == 0.19


@pytest.mark.parametrize(("ratio", "promoted"), [(None, True), (0.5, False), (0.95, True)])
def test_answers_must_be_candidates(ratio: float | None, promoted: bool) -> None:
    decision = decide(measured(0.3), None, None, GateSettings(min_valid_ratio=0.95), ratio)
    assert decision.promote is promoted
    assert promoted or "gate.min_valid_ratio" in decision.reason


@pytest.mark.parametrize(
    ("forgetting", "max_forgetting", "promoted"),
    [(0.2, None, True), (0.2, 0.2, True), (0.21, 0.2, False), (-0.1, 0.0, True)],
)
def test_a_model_may_not_forget_more_than_the_gate_lets_it(
    forgetting: float, max_forgetting: float | None, promoted: bool
) -> None:
    gate = GateSettings(max_forgetting=max_forgetting)
    decision = decide(measured(0.3), None, None, gate, forgetting=forgetting)
    assert decision.promote is promoted
    if not promoted:
        assert "21.0% above the base's" in decision.reason
        assert decision.numbers["forgetting"] == 0.21

"""The gate's truth table."""

from typing import Any

import pytest

from cprec.evaluate.significance import Paired
from cprec.promotion import decide
from cprec.recipe import GateSettings


def measured(hr1: float | None) -> dict[str, Any]:
    return {"n": 0 if hr1 is None else 1000, "hr": {"1": hr1}}


def against(difference: float, p: float) -> Paired:
    return Paired(1000, difference, difference - 0.01, difference + 0.01, p, 0.95)


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
def test_gate(candidate: float | None, champion: float | None, difference: float, p: float, floor: float, promoted: bool, because: str) -> None:
    decision = decide(
        measured(candidate),
        None if champion is None else measured(champion),
        None if champion is None else against(difference, p),
        GateSettings(min_hr1=floor, alpha=0.05),
    )
    assert decision.promote is promoted
    assert because in decision.reason
    if champion is not None and because != "below the floor":
        assert decision.numbers == {"hr1": candidate, "n": 1000, "champion_hr1": champion, "difference": difference, "p": p}

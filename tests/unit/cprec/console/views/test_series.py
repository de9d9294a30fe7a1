"""Series are thin, keep their totals, and a step that was trained again counts once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.console.views.encoding import encode
from cprec.console.views.series import POINTS, Steps, final_audit, thin
from cprec.runs.records import AuditCounts, AuditReport


def rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    base = {"batch_samples": 10, "lr": 1e-3, "loss": 2.0, "tokens": 100, "step_s": 0.5}
    return [{"step": i, "samples": 10 * i, "memory_gb": i, **base, **fields} for i in range(count)]


@given(st.integers(1, 3 * POINTS))
def test_a_series_ends_where_the_run_is_and_is_thin(count: int) -> None:
    steps = Steps()
    steps.add(rows(count))
    view = steps.view()
    assert view.steps == count
    assert view.samples[-1] == 10 * count
    assert len(view.samples) == len(view.loss) <= POINTS
    assert view.loss == [2.0] * len(view.loss)
    assert view.tokens_per_s == [200.0] * len(view.loss)
    assert view.memory_gb[-1] == count - 1


def test_a_step_that_was_trained_again_takes_the_place_of_those_after_it() -> None:
    steps = Steps()
    steps.add(rows(5))
    steps.add(rows(4, loss=1.0)[3:])
    assert steps.view().loss == [2.0, 2.0, 2.0, 1.0]
    audit = steps.audit(100)
    assert (audit.trained, audit.missing, audit.repeated, audit.planned) == (40, 0, 0, 100)


def test_gaps_and_overlaps_are_counted() -> None:
    steps = Steps()
    steps.add([*rows(2), {**rows(4)[3], "step": 2}, {**rows(4)[3], "step": 3}])
    audit = steps.audit(100)
    assert (audit.missing, audit.repeated) == (10, 10)


@pytest.mark.parametrize("row", [{}, {"step": "x"}, {"step": 1, "samples": 0, "loss": None}])
def test_a_row_that_is_no_step_is_left_out(row: dict[str, Any]) -> None:
    steps = Steps()
    steps.add([row])
    assert len(steps) == 0
    assert steps.view().samples == []


def test_what_is_not_finite_is_null_in_json() -> None:
    steps = Steps()
    steps.add(rows(1, loss=float("nan")))
    assert b'"loss":[null]' in encode(steps.view())


def test_the_final_audit_is_by_source_and_version() -> None:
    counts = {"planned": 3, "trained": 2, "missing": 1, "repeated": 0}
    report = AuditReport(**counts, sources={"domain/A": {"1": AuditCounts(**counts)}})
    view = final_audit(report)
    assert view.is_final
    assert [(s.source, s.version, s.missing) for s in view.sources] == [("domain/A", "1", 1)]


@given(st.integers(0, 3 * POINTS))
def test_thinning_keeps_both_ends(count: int) -> None:
    points = [(i, float(i)) for i in range(count)]
    kept = thin(points)
    assert len(kept) <= POINTS
    assert (kept[:1], kept[-1:]) == (points[:1], points[-1:])

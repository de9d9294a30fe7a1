"""Records survive crashes, the audit counts what was trained, a run keeps its recipe."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RecipeError, RunError
from cprec.config.cli import validate_recipe
from cprec.config.recipe import Recipe
from cprec.runs.audit import audit
from cprec.runs.recipe_lock import lock
from cprec.runs.records import JsonLinesFile, read_json_lines
from cprec.schedule.ledger import ids_digest
from cprec.schedule.plan import Portion, global_batches
from cprec.schedule.planning import PlanSettings, build_plan

PLAN = build_plan(
    PlanSettings(0, 1e-5, 1e-3, 0.1),
    [Portion("domain/A", 0, 0, 60), Portion("domain/B", 1, 0, 40)],
    [Portion("mixed", 0, 0, 50)],
)


def ids_at(start: int, stop: int) -> list[int]:
    return [(i * 0x9E3779B97F4A7C15) % (1 << 64) for i in range(start, stop)]


def row(start: int, stop: int) -> dict[str, Any]:
    return {
        "samples": start,
        "batch_samples": stop - start,
        "ids_digest": f"{ids_digest(ids_at(start, stop)):016x}",
    }


TRACE = [
    row(a, b) for start, stop in ((0, 100), (100, 150)) for a, b in global_batches(start, stop, 16)
]


def test_a_complete_trace_passes_the_audit() -> None:
    found = audit(PLAN, TRACE, ids_at)
    assert (found["planned"], found["trained"], found["missing"], found["repeated"]) == (
        150,
        150,
        0,
        0,
    )
    assert found["sources"]["domain/B"]["1"] == {
        "planned": 40,
        "trained": 40,
        "missing": 0,
        "repeated": 0,
    }


@given(st.sets(st.integers(0, len(TRACE) - 1)), st.sets(st.integers(0, len(TRACE) - 1)))
def test_every_lost_or_repeated_step_is_counted(lost: set[int], twice: set[int]) -> None:
    trace = [r for i, r in enumerate(TRACE) if i not in lost] + [TRACE[i] for i in twice]
    found = audit(PLAN, trace, ids_at)
    assert found["missing"] == sum(TRACE[i]["batch_samples"] for i in lost - twice)
    assert found["repeated"] == sum(TRACE[i]["batch_samples"] for i in twice - lost)
    for key in ("planned", "trained", "missing", "repeated"):
        assert found[key] == sum(
            entry[key] for versions in found["sources"].values() for entry in versions.values()
        )


def test_a_step_that_trained_other_samples_is_missing() -> None:
    trace = [*TRACE[:-1], {**TRACE[-1], "ids_digest": "0" * 16}]
    assert audit(PLAN, trace, ids_at)["missing"] == TRACE[-1]["batch_samples"]


def test_lines_survive_a_crash_in_the_middle_of_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "trace.jsonl")
    lines = JsonLinesFile(uri)
    lines.append({"samples": 0})
    lines.flush()
    with Path(uri).open("a") as file:
        file.write('{"samples": 1')
    assert read_json_lines(uri) == [{"samples": 0}]
    again = JsonLinesFile(uri)
    again.append({"samples": 1})
    again.append({"samples": 2})
    again.retain(lambda value: bool(value["samples"] < 2))
    assert read_json_lines(uri) == [{"samples": 0}, {"samples": 1}]


def test_a_run_keeps_its_recipe(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    first = Recipe()
    assert lock(first, run) is None
    other = validate_recipe({"workers": 5, "train": {"micro_batch": 3}}, "test")
    assert lock(other, run) == first
    changed = validate_recipe({"schedule": {"lr_max": 1e-3}, "data": {"k_core": 5}}, "test")
    with pytest.raises(RunError, match=r"data.k_core: 3 -> 5\n  schedule.lr_max: 0.0005 -> 0.001"):
        lock(changed, run)
    with pytest.raises(RunError, match=r"k_core"):
        lock(changed, run, allow=["schedule.lr_max"])
    assert lock(changed, run, allow=["schedule.lr_max", "data.k_core"]) == other
    assert lock(changed, run) == changed
    with pytest.raises(RecipeError, match="no such key"):
        lock(changed, run, allow=["lr"])

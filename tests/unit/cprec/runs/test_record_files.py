"""Files that another process has damaged are named in one sentence."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import RunError
from cprec.runs.comparisons import read_comparisons
from cprec.runs.control.attempts import list_attempts
from cprec.runs.control.liveness import read_lease
from cprec.runs.control.status import read_status
from cprec.runs.locks.base import read_base
from cprec.runs.record_files import read_json_object
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_records import read_audit
from cprec.schedule.plan import Portion
from cprec.schedule.planning import PlanSettings, build_plan

READERS: dict[str, Callable[[str], object]] = {
    "plan.json": RunPlan.read,
    "status.json": read_status,
    "leases/000007.json": read_lease,
    "attempts/000003.json": list_attempts,
    "audit.json": read_audit,
    "base.json": read_base,
    "evaluation/Games/comparison.json": read_comparisons,
    "evaluation/Games/comparisons/base/20261126T101112.000000Z.json": read_comparisons,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has a plan."""
    run = tmp_path_factory.mktemp("run")
    for name in READERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
    plan = build_plan(
        PlanSettings(0, 1e-5, 1e-3, 0.1),
        [Portion("domain/A", 0, 0, 100)],
        [Portion("mixed", 0, 0, 50)],
    )
    RunPlan("corpus", 0, plan, ("A",), ()).write(str(run))
    return run


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(READERS)),
    content=st.binary(max_size=30)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.just(b"[" * 30_000)
    | st.just(b'{"revision": "\\uD800", "base": "b", "files": {}}'),
)
def test_a_damaged_record_is_named(run: Path, name: str, content: bytes) -> None:
    before = (run / name).read_bytes() if (run / name).exists() else None
    (run / name).write_bytes(content)
    try:
        with pytest.raises(RunError, match=name):
            READERS[name](str(run))
    finally:
        (run / name).unlink() if before is None else (run / name).write_bytes(before)


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=30)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.just(b"[" * 30_000)
)
def test_a_file_that_holds_no_object_is_named(run: Path, content: bytes) -> None:
    (run / "tuned.json").write_bytes(content)
    value = None
    with suppress(ValueError, RecursionError):
        value = json.loads(content.decode("utf-8"))
    if isinstance(value, dict):
        assert read_json_object(str(run / "tuned.json")).keys() == value.keys()
    else:
        with pytest.raises(RunError, match=r"tuned\.json: damaged"):
            read_json_object(str(run / "tuned.json"))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), value=JSON)
def test_a_plan_with_another_value_is_read_or_named(
    run: Path, data: st.DataObject, value: object
) -> None:
    content = (run / "plan.json").read_text()
    node = values = json.loads(content)
    while isinstance(node, dict | list) and node:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            node[key] = value
            break
        node = node[key]
    (run / "plan.json").write_text(json.dumps(values))
    try:
        with suppress(RunError):
            RunPlan.read(str(run))
    finally:
        (run / "plan.json").write_text(content)

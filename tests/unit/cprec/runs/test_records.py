"""Records survive crashes, the audit counts what was trained, a run keeps its recipe."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RecipeError, RunError
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.runs.audit import audit
from cprec.runs.events import (
    CorpusVersionAdopted,
    Event,
    Held,
    PhaseChanged,
    Resumed,
    RunStarted,
    UnknownEvent,
    parse_event,
)
from cprec.runs.json_lines import open_events, open_trace, read_events, read_trace
from cprec.runs.locks.recipe import check_unchanged, write_recipe
from cprec.runs.records import (
    EVENTS_FILE,
    TRACE_FILE,
    AuditCounts,
    ObjectiveCounts,
    Status,
    TraceRow,
)
from cprec.runs.run_records import count_traced_samples
from cprec.schedule.ledger import ids_digest
from cprec.schedule.plan import Portion, global_batches
from cprec.schedule.planning import PlanSettings, build_plan
from cprec.schedule.wsa import Phase
from tests.records import trace_row

PLAN = build_plan(
    PlanSettings(0, 1e-5, 1e-3, 0.1),
    [Portion("domain/A", 0, 0, 60), Portion("domain/B", 1, 0, 40)],
    [Portion("mixed", 0, 0, 50)],
)


def ids_at(start: int, stop: int) -> list[int]:
    return [(i * 0x9E3779B97F4A7C15) % (1 << 64) for i in range(start, stop)]


def row(start: int, stop: int) -> TraceRow:
    digest = f"{ids_digest(ids_at(start, stop)):016x}"
    return trace_row(samples=start, batch_samples=stop - start, ids_digest=digest)


TRACE = [
    row(a, b) for start, stop in ((0, 100), (100, 150)) for a, b in global_batches(start, stop, 16)
]


def test_a_complete_trace_passes_the_audit() -> None:
    report = audit(PLAN, TRACE, ids_at)
    assert (report.planned, report.trained, report.missing, report.repeated) == (150, 150, 0, 0)
    counts = AuditCounts(planned=40, trained=40, missing=0, repeated=0)
    assert report.sources["domain/B"]["1"] == counts


@given(st.sets(st.integers(0, len(TRACE) - 1)), st.sets(st.integers(0, len(TRACE) - 1)))
def test_every_lost_or_repeated_step_is_counted(lost: set[int], twice: set[int]) -> None:
    trace = [r for i, r in enumerate(TRACE) if i not in lost] + [TRACE[i] for i in twice]
    report = audit(PLAN, trace, ids_at)
    assert report.missing == sum(TRACE[i].batch_samples for i in lost - twice)
    assert report.repeated == sum(TRACE[i].batch_samples for i in twice - lost)
    for name in ("planned", "trained", "missing", "repeated"):
        assert getattr(report, name) == sum(
            getattr(counts, name)
            for versions in report.sources.values()
            for counts in versions.values()
        )


def test_a_step_that_trained_other_samples_is_missing() -> None:
    trace = [*TRACE[:-1], TRACE[-1].model_copy(update={"ids_digest": "0" * 16})]
    assert audit(PLAN, trace, ids_at).missing == TRACE[-1].batch_samples


def test_objectives_that_were_trained_stand_beside_those_that_were_planned() -> None:
    def of_position(start: int, stop: int) -> dict[str, int]:
        masked = sum(position % 3 == 0 for position in range(start, stop))
        return {"masked_item": masked, "next_item": stop - start - masked}

    trace = [
        step.model_copy(update={"objectives": of_position(step.samples, step.end)})
        for step in TRACE
    ]
    assert audit(PLAN, trace, ids_at).objectives is None
    report = audit(PLAN, trace, ids_at, of_position).objectives
    assert report == {
        name: ObjectiveCounts(planned=count, trained=count)
        for name, count in of_position(0, 150).items()
    }
    others = [trace[0].model_copy(update={"objectives": {"next_history": 4}}), *trace[1:]]
    changed = audit(PLAN, others, ids_at, of_position).objectives
    assert changed is not None
    assert changed["next_history"] == ObjectiveCounts(planned=0, trained=4)
    assert changed["masked_item"].trained < changed["masked_item"].planned


def test_lines_survive_a_crash_in_the_middle_of_one(tmp_path: Path) -> None:
    run = str(tmp_path)
    trace = open_trace(run)
    trace.append(row(0, 1))
    trace.flush()
    with (tmp_path / TRACE_FILE).open("a") as file:
        file.write('{"samples": 1')
    assert read_trace(run) == [row(0, 1)]
    again = open_trace(run)
    again.append(row(1, 2))
    again.append(row(2, 3))
    again.retain(lambda step: step.samples < 2)
    assert read_trace(run) == [row(0, 1), row(1, 2)]


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond a size (bytes): writes are short, then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(st.data())
def test_a_disk_that_is_full_for_a_while_cuts_no_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("full")
    trace = open_trace(str(folder))
    trace.append(row(0, 1))
    trace.flush()
    before = (folder / TRACE_FILE).read_bytes()
    rows = [row(1, 2), row(2, 3)]
    for appended in rows:
        trace.append(appended)
    room = data.draw(st.integers(0, len(before)))
    with no_room_beyond(len(before) + room), pytest.raises(OSError, match="too large"):
        trace.flush()
    assert (folder / TRACE_FILE).read_bytes() == before
    assert trace.read() == [row(0, 1), *rows]
    trace.flush()
    assert read_trace(str(folder)) == [row(0, 1), *rows]


@pytest.mark.parametrize(
    "damaged", [b"{garbage", b"[]", b"null", b"7", b'{"step":1}', b"\xff\xfe", b"[" * 100_000, b""]
)
def test_a_damaged_line_is_named_and_dropped(tmp_path: Path, damaged: bytes) -> None:
    lines = [json.dumps(row(i, i + 1).to_json()).encode() for i in range(3)]
    content = b"\n".join([lines[0], damaged, lines[2], b""])
    (tmp_path / TRACE_FILE).write_bytes(content)
    with pytest.raises(RunError, match=r"trace.jsonl: line 2 is not a record"):
        read_trace(str(tmp_path))
    trace = open_trace(str(tmp_path))
    assert trace.read() == [row(0, 1), row(2, 3)]
    (damage,) = trace.damage
    assert "trace.jsonl: line 2 was not a record" in damage
    assert Path(damage.split("see ")[1]).read_bytes() == content
    assert read_trace(str(tmp_path)) == [row(0, 1), row(2, 3)]
    assert open_trace(str(tmp_path)).damage == []


def test_a_damaged_event_is_named_by_an_event(tmp_path: Path) -> None:
    file = tmp_path / EVENTS_FILE
    held = '{"event": "held", "samples": 1, "time": 2, "by": "%s"}\n'
    # The second is an emoji; half of one, as in the third, can be written to no page.
    file.write_text(held % "A" + held % "\\ud83d\\ude00" + held % "\\ud83d" + '{"event": []}\n')
    assert [event.event for event in read_events(str(tmp_path))] == ["held", "held"]
    open_events(str(tmp_path)).flush()
    kinds = [event.event for event in read_events(str(tmp_path))]
    assert kinds == ["held", "held", "record_dropped", "record_dropped"]


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_traced_samples_count_up_to_the_first_gap(is_kept: list[bool]) -> None:
    rows = [row(i, i + 1).model_copy(update={"step": i}) for i in range(len(is_kept))]
    kept = [step for step, keep in zip(rows, is_kept, strict=True) if keep]
    assert count_traced_samples(kept) == (
        is_kept.index(False) if False in is_kept else len(is_kept)
    )
    assert count_traced_samples(kept + kept) == count_traced_samples(kept)


EVENTS: list[Event] = [
    RunStarted(samples=0, run="r", warmup_end=1, stable_end=2, annealing_end=3),
    CorpusVersionAdopted(samples=0, version=0, sources={"mixed": 1}, stable_end=2, annealing_end=3),
    PhaseChanged(samples=1, before=Phase.WARMUP, after=Phase.STABLE, because="so"),
    Resumed(samples=1, checkpoint="c", attempt=1, workers=2),
    Held(samples=1),
]


def test_events_come_back_as_what_they_were(tmp_path: Path) -> None:
    events = open_events(str(tmp_path))
    for event in EVENTS:
        events.append(event)
    events.flush()
    assert read_events(str(tmp_path)) == EVENTS
    names = [list(json.loads(line)) for line in (tmp_path / EVENTS_FILE).read_text().splitlines()]
    assert names[2] == ["time", "event", "samples", "from", "to", "because"]
    assert all(keys[:3] == ["time", "event", "samples"] for keys in names)


@pytest.mark.parametrize(
    "values",
    [
        {"event": "of_another_release", "color": "red"},
        {"event": "run_finished", "color": "red"},  # with other fields than today
    ],
)
def test_an_event_of_another_release_keeps_its_fields(values: dict[str, str]) -> None:
    event = parse_event({"time": 1.0, "samples": 5, **values})
    assert isinstance(event, UnknownEvent)
    assert event.details() == {"color": "red"}
    assert event.to_json() == {"time": 1.0, "samples": 5, **values}


def test_records_of_release_0_1_are_read() -> None:
    """Rows without the fields that came later; a status that says `rate`."""
    old = {
        "step": 3, "samples": 96, "batch_samples": 32, "phase": "stable", "lr": 1e-3, "loss": 2.0,
        "grad_norm": 0.5, "supervised_tokens": 9, "tokens": 99, "step_s": 0.1, "data_wait_s": 0.0,
        "sources": {"mixed": 32}, "ids_digest": "0" * 16,
    }  # fmt: skip
    step = TraceRow.from_json(old)
    assert (step.end, step.dropped_titles, step.planned) == (128, 0, 0)
    owner = {"host": "h", "pid": 1, "token": "t"}
    status = Status.from_json(
        {"time": 1.0, "owner": owner, "answers": {}, "run": "r", "state": "ended", "rate": 5e-6}
    )
    assert status.lr == 5e-6
    assert status.to_json()["lr"] == 5e-6
    assert "rate" not in status.to_json()


def test_a_run_keeps_its_recipe(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    first = Recipe()
    assert check_unchanged(first, run) is None
    write_recipe(first, run)
    later = {"retrieval": {"decay": 0.5}, "recommend": {"k": 3}, "serve": {"port": 1}}
    later |= {"baseline": {"lr": 0.5}, "finetune": {"max_samples": 9}, "search": {"lrs": [0.1]}}
    values = {"workers": 5, "train": {"micro_batch": 3}, "console": {"port": 1}, **later}
    other = validate_recipe(values, "test")
    assert check_unchanged(other, run) == first
    write_recipe(other, run)
    changed = validate_recipe({"schedule": {"lr_max": 1e-3}, "data": {"k_core": 5}}, "test")
    with pytest.raises(RunError, match=r"data.k_core: 3 -> 5\n  schedule.lr_max: 0.0005 -> 0.001"):
        check_unchanged(changed, run)
    with pytest.raises(RunError, match=r"k_core"):
        check_unchanged(changed, run, allow=["schedule.lr_max"])
    assert check_unchanged(changed, run, allow=["schedule.lr_max", "data.k_core"]) == other
    write_recipe(changed, run)
    assert check_unchanged(changed, run) == changed
    with pytest.raises(RecipeError, match="no such key"):
        check_unchanged(changed, run, allow=["lr"])

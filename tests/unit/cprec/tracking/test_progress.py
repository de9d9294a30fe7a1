"""The live line fits the terminal and follows the plan; what changes the run is said once."""

import os
import sys
import time

import pytest

from cprec.config.sections.services import CostSettings
from cprec.runs.events import (
    AnnealingCalled,
    CorpusVersionAdopted,
    Held,
    Resumed,
)
from cprec.runs.records import TraceRow
from cprec.runs.run_records import RunRecords
from cprec.tracking.progress import Progress, describe_memory, format_progress
from cprec.tracking.report.cost import describe_cost, measure_cost
from tests.records import trace_row


def rows(count: int, **changes: float) -> list[TraceRow]:
    return [
        trace_row(step=i, samples=32 * i, batch_samples=32, tokens=1000, step_s=0.1, **changes)
        for i in range(count)
    ]


@pytest.mark.parametrize("columns", [20, 60, 80, 100, 150, 1000])
def test_the_line_fits_and_keeps_what_matters_most(columns: int) -> None:
    line = format_progress(rows(3), 12_345_678, 113.25, columns)
    assert len(line) <= columns
    if columns >= 60:
        assert "96/12,345,678 samples" in line
        assert "loss" in line
    assert ("TFLOP/s" in line) == (columns >= 150)


def test_on_a_terminal_the_line_never_wraps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(
        "shutil.get_terminal_size", lambda fallback=(80, 24): os.terminal_size((72, 24))
    )
    progress = Progress(640, print)
    progress.update(rows(2))
    progress.update(rows(3), planned_samples=900)
    progress.close()
    lines = capsys.readouterr().out.replace("\r\x1b[2K", "\n").splitlines()
    assert max(map(len, lines)) < 72
    assert "64/640 samples" in lines[1]
    assert "96/900 samples" in lines[2]


def test_the_line_follows_a_plan_that_grows_and_one_that_shrinks() -> None:
    lines: list[str] = []
    progress = Progress(640, lines.append)
    for planned in (900, 300):
        progress._last_shown = -1e9
        progress.update(rows(1, planned=640), planned_samples=planned)
    assert ["/900 samples" in lines[0], "/300 samples" in lines[1]] == [True, True]


def test_memory_that_is_far_from_the_plan_is_said_once_after_the_first_steps() -> None:
    lines: list[str] = []
    progress = Progress(640, lines.append)
    for count in (2, 1, 1):
        progress.update(rows(count, memory_gb=49.5, planned_memory_gb=100.0))
    warnings = [line for line in lines if "warning" in line]
    assert len(warnings) == 1
    assert "49.5 GB of GPU memory are in use, 100.0 GB were planned" in warnings[0]


@pytest.mark.parametrize("planned_memory_gb", [None, 45.0, 60.0])
def test_memory_near_the_plan_or_without_one_is_not_said(planned_memory_gb: float | None) -> None:
    row = trace_row(memory_gb=50.0, planned_memory_gb=planned_memory_gb)
    assert describe_memory(row) is None


def test_filled_tokens_are_shown_as_a_share_of_the_computed() -> None:
    assert "filled 2.0%" in format_progress([trace_row(tokens=980, filled_tokens=20)], 640)
    assert "filled" not in format_progress([trace_row()], 640)


def test_what_changes_the_run_is_said_on_a_line_of_its_own_once() -> None:
    lines: list[str] = []
    progress = Progress(640, lines.append)
    before = time.time() - 3600
    progress.update((), [Held(samples=0, time=before)], None, 640)
    assert lines == []
    events = [
        CorpusVersionAdopted(
            samples=160, version=1, sources={"domain/Steam": 0}, stable_end=300, annealing_end=331
        ),
        AnnealingCalled(samples=200, stable_end=200, annealing_end=220),
        Resumed(samples=96, checkpoint="c", attempt=1, workers=2),
    ]
    for event in events:
        progress.update((), [event.model_copy(update={"time": time.time() + 1})], None, 331)
    assert lines == [
        "planned corpus version 1 (sample 160): domain/Steam 0; S = 300, A = 331",
        "annealing was called (sample 200): S = 200, A = 220",
        "went on (sample 96): 2 workers, attempt 1",
    ]


def test_layers_that_are_compiled_after_the_first_steps_are_told() -> None:
    lines: list[str] = []
    progress = Progress(640, lines.append)
    # Another group of workers compiles anew from its first step on.
    for step, graphs in enumerate([2, 4, 4, 6, 6, 2, 4, 4]):
        progress.update([trace_row(step=step, compiled_graphs=graphs, step_s=12.5)])
    assert [line for line in lines if "compiled" in line] == [
        "step 3 compiled 2 graph(s) more, 6 by now, and took 12.5 s: its rows have a length that "
        "was new (train.pack_tokens)"
    ]


def test_a_wait_is_said_each_time_that_it_begins() -> None:
    lines: list[str] = []
    progress = Progress(640, lines.append)
    for waiting in ("held open", "held open", None, "held open"):
        progress.update((), (), waiting, 640)
    assert lines == ["waiting: held open"] * 2


def test_a_hold_is_no_work_and_no_wait_for_data() -> None:
    steps = rows(10)
    steps[5] = steps[5].model_copy(update={"held_s": 600.0, "data_wait_s": 0.0})
    assert "10,000 tokens/s" in format_progress(steps, 640)
    records = RunRecords("trunk", trace=steps)
    section = describe_cost(records, measure_cost(records), CostSettings())
    told = {name.text: value.text for name, value in section.tables[0].rows}
    assert told["Tokens per second of steps"] == "10,000"
    assert told["Held open, waiting for domains"] == "10.0 min"
    assert told["Waiting for data"] == "0 s"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now

    monotonic = time


def test_a_start_or_a_checkpoint_that_takes_a_while_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("cprec.tracking.progress.time", clock)
    plain: list[str] = []
    progress = Progress(640, plain.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(
        "shutil.get_terminal_size", lambda fallback=(80, 24): os.terminal_size((80, 24))
    )
    live = Progress(640, print)
    for news in ((), (), rows(2), (), ()):
        clock.now += 4.0
        for shown in (progress, live):
            shown.update(news)
    assert [line for line in plain if "samples" not in line] == [
        "workers start, tokenise and load the model: 0:08 so far"
    ]
    lines = capsys.readouterr().out.split("\r\x1b[2K")[1:]
    assert [line.rpartition("  ")[2] for line in lines] == [
        "workers start, tokenise and load the model: 0:08 so far",
        "0:01 left",
        "no step for 0:08",
    ]

"""The progress of steps, on a terminal and elsewhere."""

import io
import sys

import pytest
from rich.console import Console

from cprec.reproduction.progress import (
    ReproductionProgress,
    StepProgress,
    StepState,
    format_time,
    progress_table,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(steps: list[StepProgress], running: float = 0.0, note: str = "") -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(progress_table({step.name: step for step in steps}, running, note))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_table_shows_the_steps_around_the_one_that_runs() -> None:
    steps = [StepProgress(f"kept-{i}", StepState.KEPT, 61) for i in range(9)]
    steps += [StepProgress("now", StepState.RUNNING)]
    steps += [StepProgress(f"later-{i}") for i in range(20)]
    text = shown(steps, running=125, note="[bold]loss 1.5")
    assert "9 of 30 steps" in text
    assert "kept-4" not in text
    assert "kept-5" in text
    assert "1:01" in text
    assert "now" in text
    assert "2:05" in text
    assert "... and 11 more" in text
    assert "[bold]loss 1.5" in text


def test_the_table_of_a_finished_reproduction_has_no_rest() -> None:
    text = shown([StepProgress(f"step-{i}", StepState.DONE, 5) for i in range(3)])
    assert "3 of 3 steps" in text
    assert "more" not in text


def test_elsewhere_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    lines: list[str] = []
    with ReproductionProgress(["corpus", "tune"], lines.append) as progress:
        progress.keep("corpus", 3.0)
        progress.start("tune")
        progress.say("loss 1.5")
        progress.end("tune", 61.0)
    assert lines == ["step 2 of 2: tune", "  loss 1.5", "tune: 1:01"]


def test_on_a_terminal_lines_of_jobs_become_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with ReproductionProgress(["tune"], lambda line: pytest.fail(line)) as progress:
        progress.start("tune")
        print("\r\x1b[2Kloss 1.5", end="")
        assert not sys.stdout.isatty()
    assert sys.stdout is terminal
    assert "loss 1.5" in terminal.getvalue()


def test_times_are_minutes_and_seconds() -> None:
    assert [format_time(seconds) for seconds in (0, 59.9, 3_605)] == ["0:00", "0:59", "60:05"]

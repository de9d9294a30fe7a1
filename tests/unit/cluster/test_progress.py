"""How far a stage is: plain lines now and then, a bar on a terminal, and what a task tells."""

import io
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import progress
from cluster.errors import RunError
from cluster.progress import Advance, format_clock, format_stage, track, without_stdout
from cluster.ray_tasks import REPORTS, TaskResult, _report


class Lines(list[str]):
    """Lines that were said; one can wait for the next."""

    def __init__(self) -> None:
        self._came = threading.Semaphore(0)

    def say(self, line: str) -> None:
        self.append(line)
        self._came.release()

    def wait_for_one(self) -> None:
        assert self._came.acquire(timeout=30)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What is said, by a clock in which the first line comes at once."""
    monkeypatch.setattr(progress, "QUIET_S", 0.01)
    return Lines()


def test_a_stage_that_takes_a_while_says_how_far_it_is_and_when_it_is_done(lines: Lines) -> None:
    with redirect_stdout(io.StringIO()), track("scoring", lines.say, 200, "samples") as advance:
        advance(50)
        with without_stdout():  # around a library that prints too much
            lines.wait_for_one()
    assert lines == ["scoring: 50 of 200 samples, 0:00 left", "scoring: done in 0:00"]


def test_a_short_stage_says_nothing() -> None:
    lines = Lines()
    with redirect_stdout(io.StringIO()), track("scoring", lines.say, 10, "samples") as advance:
        advance(10)
    assert lines == []


def test_a_stage_that_fails_is_not_called_done(lines: Lines) -> None:
    def stage() -> None:
        with redirect_stdout(io.StringIO()), track("scoring", lines.say):
            lines.wait_for_one()
            raise RunError("no such run")

    with pytest.raises(RunError):
        stage()
    assert lines == ["scoring: 0:00 so far"]


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("total", "shown"), [(20, "5/20"), (None, "0:00:0")])
def test_a_terminal_shows_a_bar_that_vanishes(
    total: int | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal, lines = Terminal(), Lines()
    with redirect_stdout(terminal):
        with track("scoring [red]", lines.say, total, "samples") as advance:
            advance(5)
            print("a line among it")
        print("after it")
    text = terminal.getvalue()
    assert "scoring [red]" in text
    assert shown in text
    assert "a line among it" in text
    assert text.rstrip().endswith("after it")
    assert lines == []


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (0, None, 65, "s: 1:05 so far"),
        (0, 10, 65, "s: 0 of 10 u, 1:05 so far"),
        (1_000, 4_000, 60, "s: 1,000 of 4,000 u, 3:00 left"),
        (12, 10, 60, "s: 10 of 10 u, 0:00 left"),
    ],
)
def test_the_line_of_a_stage(done: int, total: int | None, seconds: float, line: str) -> None:
    assert format_stage("s", done, total, "u", seconds) == line


def test_clocks() -> None:
    assert [format_clock(s) for s in (0, 59.9, 60, 3599, 3600, 86_400)] == [
        *("0:00", "0:59", "1:00", "59:59", "1:00:00", "24:00:00")
    ]


def told(compute: Callable[[int, Advance], object], total: int) -> list[int | TaskResult]:
    return list(_report(compute, (total,), total))


@given(st.integers(0, 10_000), st.lists(st.integers(0, 400), max_size=30))
def test_a_task_tells_as_many_counts_whatever_it_advances_by(total: int, steps: list[int]) -> None:
    def compute(number: int, advance: Advance) -> str:
        for step in steps:
            advance(step)
        return f"result of {number}"

    *counts, result = told(compute, total)
    assert result == TaskResult(f"result of {total}")
    assert len(counts) == REPORTS
    assert sum(count for count in counts if isinstance(count, int)) == total


def test_a_task_tells_of_its_progress_before_its_end() -> None:
    go_on = threading.Event()

    def compute(number: int, advance: Advance) -> float:
        advance(number // 2)
        assert go_on.wait(30)
        return time.monotonic()

    stream = _report(compute, (100,), 100)
    half = [next(stream) for _ in range(REPORTS // 2)]
    assert sum(count for count in half if isinstance(count, int)) == 50
    assert not go_on.is_set()
    go_on.set()
    assert isinstance(list(stream)[-1], TaskResult)


def test_the_error_of_a_task_is_its_own() -> None:
    def compute(number: int, advance: Advance) -> None:
        raise RunError("damaged")

    with pytest.raises(RunError, match="damaged"):
        told(compute, 10)

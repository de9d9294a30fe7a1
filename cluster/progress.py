"""How far a stage is: a bar with its ETA on a terminal, plain lines now and then elsewhere.

A stage that ends within QUIET_S leaves no plain line.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout

from cluster.console import Say

Advance = Callable[[int], None]
"""A function that takes how many more are done."""

QUIET_S = 5.0
"""Seconds before the first plain line of a stage."""

INTERVAL_S = 10.0
"""Seconds between two plain lines."""

_STDOUT = threading.Lock()
"""Held while `sys.stdout` is replaced, which belongs to all threads."""


def unseen(count: int) -> None:
    """An `Advance` for those whom nobody watches."""


def track(
    stage: str, say: Say, total: int | None = None, unit: str = ""
) -> AbstractContextManager[Advance]:
    """Shows how far a stage is while a `with` block runs.

    The block gets a function that takes how many more are done. Whether or not it is called, the
    time goes on to be shown.

    Args:
        stage: What is done, for people.
        say: Takes plain lines.
        total: How many there are to do; None: nobody knows, and only the time is shown.
        unit: What is counted, such as samples.
    """
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return _show_bar(stage, total, unit) if is_terminal else _say_lines(stage, say, total, unit)


@contextmanager
def without_stdout() -> Iterator[None]:
    """Drops what a library prints in a `with` block; the lines of `track` are still seen."""
    with _STDOUT:
        stdout, sys.stdout = sys.stdout, None
    try:
        yield
    finally:
        with _STDOUT:
            sys.stdout = stdout


def format_stage(stage: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """Returns the plain line of a stage.

    Args:
        stage: What is done.
        done: How many are done; of tasks that were repeated, some count twice.
        total: How many there are to do; None: nobody knows.
        unit: What is counted.
        seconds: Time since the start.
    """
    if total is None:
        return f"{stage}: {format_clock(seconds)} so far"
    done = min(done, total)
    counted = f"{stage}: {done:,} of {total:,} {unit}"
    if not done:
        return f"{counted}, {format_clock(seconds)} so far"
    return f"{counted}, {format_clock(seconds * (total - done) / done)} left"


def format_clock(seconds: float) -> str:
    """Returns a time as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _show_bar(stage: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Shows a bar that vanishes at the end; lines that are printed meanwhile stand above it."""
    from rich.console import Console  # only jobs print; workers need not load rich
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counted = (MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        *(counted if total is not None else (TimeElapsedColumn(),)),
        console=Console(file=sys.stdout),  # also where stdout is redirected meanwhile
        transient=True,
        refresh_per_second=2,
    ) as progress:
        task = progress.add_task(stage, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _say_lines(stage: str, say: Say, total: int | None, unit: str) -> Iterator[Advance]:
    """Says a line now and then, from a thread, as the block may compute for minutes."""
    started, stdout, ended = time.monotonic(), sys.stdout, threading.Event()
    done = lines = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count

    def show(line: str) -> None:
        nonlocal lines
        lines += 1
        with _STDOUT, redirect_stdout(stdout):  # the block may drop what is printed
            say(line)

    def watch() -> None:
        while not ended.wait(INTERVAL_S if lines else QUIET_S):
            show(format_stage(stage, done, total, unit, time.monotonic() - started))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()
    if lines:
        show(f"{stage}: done in {format_clock(time.monotonic() - started)}")

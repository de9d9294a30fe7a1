"""Shows which steps are computed: a live table on a terminal, plain lines elsewhere."""

import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from enum import StrEnum

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cluster.console import Say

SHOWN_BEFORE, SHOWN_AFTER = 4, 10
"""Steps that the table shows before and after the one that runs."""


class StepState(StrEnum):
    """How far a step is."""

    KEPT = "kept"
    """Computed by an earlier start."""
    DONE = "done"
    RUNNING = "running"
    WAITING = ""


@dataclass(frozen=True)
class StepProgress:
    """A step as the table shows it.

    Attributes:
        name: Its name.
        state: How far it is.
        seconds: Time that it took, or takes so far; 0 before it starts.
    """

    name: str
    state: StepState = StepState.WAITING
    seconds: float = 0.0


class ReproductionProgress:
    """The steps of a reproduction; a context manager, inside which a terminal shows a table."""

    def __init__(self, names: Sequence[str], say: Say) -> None:
        """Begins with all steps waiting.

        Args:
            names: Names of the steps, in order.
            say: Takes plain lines, where there is no terminal.
        """
        self._steps = {name: StepProgress(name) for name in names}
        self._say_plainly = say
        self._note = ""
        self._started: float | None = None
        self._live: Live | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "ReproductionProgress":
        if sys.stdout.isatty():
            console = Console(file=sys.stdout)
            # Jobs print lines that rewrite themselves: they become the note below the table.
            self._stack.enter_context(redirect_stdout(_Lines(self.say)))
            live = Live(
                console=console,
                get_renderable=self._table,
                refresh_per_second=1,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live = self._stack.enter_context(live)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._live = None

    def say(self, line: str) -> None:
        """Shows a line of a job."""
        self._note = line
        if self._live is None:
            self._say_plainly(f"  {line}")

    def keep(self, name: str, seconds: float) -> None:
        """Notes that a step was computed by an earlier start."""
        self._set(name, StepState.KEPT, seconds)

    def start(self, name: str) -> None:
        """Notes that a step starts."""
        self._set(name, StepState.RUNNING, 0.0)
        self._started = time.monotonic()
        if self._live is None:
            number = list(self._steps).index(name) + 1
            self._say_plainly(f"step {number} of {len(self._steps)}: {name}")

    def end(self, name: str, seconds: float) -> None:
        """Notes that the running step has ended."""
        self._set(name, StepState.DONE, seconds)
        self._started, self._note = None, ""
        if self._live is None:
            self._say_plainly(f"{name}: {format_time(seconds)}")

    def _set(self, name: str, state: StepState, seconds: float) -> None:
        self._steps[name] = replace(self._steps[name], state=state, seconds=seconds)

    def _table(self) -> Table:
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return progress_table(self._steps, running, self._note)


def progress_table(steps: Mapping[str, StepProgress], running: float, note: str) -> Table:
    """Returns the steps around the one that runs, as a table.

    Args:
        steps: All steps in order.
        running: Time since the running step started (s).
        note: Last line of its job.
    """
    all_steps = list(steps.values())
    ended = sum(step.state in (StepState.KEPT, StepState.DONE) for step in all_steps)
    current = next(
        (
            i
            for i, step in enumerate(all_steps)
            if step.state in (StepState.RUNNING, StepState.WAITING)
        ),
        len(all_steps),
    )
    first, last = max(0, current - SHOWN_BEFORE), current + SHOWN_AFTER
    table = Table(
        title=f"{ended} of {len(all_steps)} steps", caption=escape(note) or None, box=SIMPLE_HEAD
    )
    table.add_column("step")
    table.add_column("")
    table.add_column("time", justify="right")
    for step in all_steps[first:last]:
        seconds = running if step.state is StepState.RUNNING else step.seconds
        table.add_row(escape(step.name), step.state, format_time(seconds) if step.state else "")
    if (left := len(all_steps) - last) > 0:
        table.add_row(f"... and {left} more", "", "")
    return table


def format_time(seconds: float) -> str:
    """Returns minutes and seconds, as 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class _Lines(io.TextIOBase):
    """A stream that passes what is written to it on in lines; it is no terminal."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def write(self, text: str) -> int:
        """Passes on the last line of a text."""
        if lines := [line for line in text.replace("\r", "\n").splitlines() if line.strip()]:
            self._say(lines[-1])
        return len(text)

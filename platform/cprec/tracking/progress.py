"""The live progress line of a training run.

On a terminal and in a notebook it is one line that rewrites itself; elsewhere it is a plain line
now and then. What changes the run is said on a line of its own.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from cluster.console import Say
from cluster.progress import QUIET_S, format_clock
from cprec.runs.events import (
    AnnealingCalled,
    CorpusVersionAdopted,
    Event,
    Held,
    PerplexityMeasured,
    PreemptionNoticed,
    Released,
    RequestRefused,
    Resumed,
    StorageFailed,
    WorkersFailed,
)
from cprec.runs.records import TraceRow
from cprec.tracking.event_words import describe_event

LOG_INTERVAL_S = 10.0
"""Seconds between two plain lines, at least; a new phase is shown at once."""

RECENT_STEPS = 50
"""Steps over which the line averages its speeds."""

WARM_UP_STEPS = 3
"""Steps after which a run has used as much memory as it will: all code has run, with moments."""

MEMORY_TOLERANCE = 0.2
"""Largest difference of used and planned memory that is not told, as a fraction of the planned."""

COMPILING_STEPS = 2
"""Steps of a group of workers in which layers are compiled, without a word about it."""

ANNOUNCED = (
    *(AnnealingCalled, CorpusVersionAdopted, Held, PreemptionNoticed, Released, RequestRefused),
    *(Resumed, StorageFailed, WorkersFailed),
)
"""Events that change what a run does: each is said on a line of its own."""

UNLIMITED_COLUMNS = 1 << 16
"""Width of a line that goes to a file."""


class Progress:
    """Shows where a run stands, as its trace rows and events arrive."""

    def __init__(self, planned_samples: int, say: Say) -> None:
        """Starts without a line.

        Args:
            planned_samples: Samples of the plan at the start; appends and annealing change it.
            say: Takes the plain lines.
        """
        self._planned_samples = planned_samples
        self._say = say
        self._terminal = can_rewrite_lines(sys.stdout)
        self._started = time.time()
        self._last_shown = 0.0
        self._line_is_open, self._columns = False, 0
        self._recent: list[TraceRow] = []
        self._phase = ""
        self._waits = False
        self._memory_is_checked = False
        self._perplexity: float | None = None
        self._compilations = Compilations()
        self._newest_step = time.monotonic()
        self._start_is_said = False

    def update(
        self,
        rows: Sequence[TraceRow],
        events: Sequence[Event] = (),
        waiting: str | None = None,
        planned_samples: int | None = None,
    ) -> None:
        """Takes news of the run and shows where it stands.

        Args:
            rows: New trace rows.
            events: New events; those of earlier starts are not shown.
            waiting: Why the run waits for new samples, for people; None: it does not.
            planned_samples: Samples of the plan (A) as it stands; None: as before.
        """
        if planned_samples is not None:
            self._planned_samples = planned_samples
        for event in events:
            if isinstance(event, PerplexityMeasured):
                self._perplexity = event.perplexity
            elif event.time >= self._started and isinstance(event, ANNOUNCED):
                self._say_on_its_own_line(describe_event(event).line())
        if rows:
            self._recent = [*self._recent, *rows][-RECENT_STEPS:]
            self._show(rows[-1].phase)
            self._check_memory()
            self._newest_step = time.monotonic()
        elif waiting is None:
            self._show_idle(time.monotonic() - self._newest_step)
        for row in rows:
            if (text := self._compilations.describe(row)) is not None:
                self._say_on_its_own_line(text)
        if waiting is not None and not self._waits:
            self._say_on_its_own_line(f"waiting: {waiting}")
        self._waits = waiting is not None

    def close(self) -> None:
        """Ends the line that rewrites itself, so that the next output begins below it."""
        if self._line_is_open:
            print(flush=True)
            self._line_is_open, self._columns = False, 0

    def _show(self, phase: str) -> None:
        phase_changed, self._phase = phase != self._phase, phase
        text = self._format()
        if self._terminal:
            self._rewrite_line(text)
        elif phase_changed or time.monotonic() - self._last_shown >= LOG_INTERVAL_S:
            self._last_shown = time.monotonic()
            self._say(text)

    def _show_idle(self, seconds: float) -> None:
        """Shows that no step ended for a while: workers start, or a checkpoint is saved."""
        if seconds < QUIET_S:
            return
        idle = (
            f"no step for {format_clock(seconds)}"
            if self._recent
            else (f"workers start, tokenise and load the model: {format_clock(seconds)} so far")
        )
        if self._terminal:
            self._rewrite_line(self._format(idle))
        elif not self._recent and not self._start_is_said:
            self._start_is_said = True
            self._say(idle)

    def _format(self, idle: str = "") -> str:
        columns = shutil.get_terminal_size().columns - 1 if self._terminal else UNLIMITED_COLUMNS
        if not self._recent:
            return idle[:columns]
        planned, perplexity = self._planned_samples, self._perplexity
        return format_progress(self._recent, planned, perplexity, columns, idle)

    def _rewrite_line(self, text: str) -> None:
        # A notebook replaces what the new line covers, and ignores the code that clears it.
        print(f"\r\x1b[2K{text:<{self._columns}}", end="", flush=True)
        self._columns = len(text)
        self._line_is_open = True

    def _check_memory(self) -> None:
        """Says once, after the first steps, if the memory in use is far from the planned."""
        if self._memory_is_checked or len(self._recent) < WARM_UP_STEPS:
            return
        self._memory_is_checked = True
        if (text := describe_memory(self._recent[-1])) is not None:
            self._say_on_its_own_line(text)

    def _say_on_its_own_line(self, text: str) -> None:
        self.close()
        self._say(text)


def can_rewrite_lines(stream: TextIO) -> bool:
    """Returns whether a line can replace itself: on a terminal, or below a cell of a notebook."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")


class Compilations:
    """Tells of layers that are compiled again, when the first steps are over."""

    def __init__(self) -> None:
        """Begins before the first step."""
        self._graphs, self._steps = 0, 0

    def describe(self, row: TraceRow) -> str | None:
        """Takes the next step; describes for people what it compiled beyond the first steps."""
        before, self._graphs = self._graphs, row.compiled_graphs
        if row.compiled_graphs < before:  # another group of workers
            self._steps = 0
        self._steps += 1
        if self._steps <= COMPILING_STEPS or row.compiled_graphs <= before:
            return None
        return (
            f"step {row.step} compiled {row.compiled_graphs - before} graph(s) more, "
            f"{row.compiled_graphs} by now, and took {row.step_s:,.1f} s: its rows have a length "
            "that was new (train.pack_tokens)"
        )


def describe_memory(row: TraceRow) -> str | None:
    """Warns if the memory in use is far from what was planned; None if it is not."""
    planned = row.planned_memory_gb
    if planned is None or abs(row.memory_gb - planned) <= MEMORY_TOLERANCE * planned:
        return None
    return (
        f"warning: {row.memory_gb:.1f} GB of GPU memory are in use, {planned:.1f} GB were planned; "
        "set train.pack_tokens and train.recompute yourself, this model is estimated badly"
    )


def format_progress(
    recent: Sequence[TraceRow],
    planned_samples: int,
    perplexity: float | None = None,
    columns: int = UNLIMITED_COLUMNS,
    idle: str = "",
) -> str:
    """Returns the progress line: the state after the newest step, and speeds over recent steps.

    Time that the stable phase was held open is not counted.

    Args:
        recent: Trace rows of recent steps, the newest last.
        planned_samples: Samples of the plan.
        perplexity: Perplexity of evaluate.text as last measured; None if it never was.
        columns: Width of the line; parts that do not fit are left out, the least important first.
        idle: Says that no step ended for a while; empty: steps go on.
    """
    newest = recent[-1]
    seconds = sum(row.step_s + row.data_wait_s for row in recent) or 1e-9
    samples_per_s = sum(row.batch_samples for row in recent) / seconds
    tokens_per_s = sum(row.tokens for row in recent) / seconds
    tflops = sum(row.tflops * row.step_s for row in recent) / seconds
    data_wait = sum(row.data_wait_s for row in recent) / seconds
    computed = sum(row.computed_tokens or row.tokens for row in recent)
    filled = sum(row.filled_tokens for row in recent)
    samples_left = max(planned_samples - newest.end, 0)
    seconds_left = int(samples_left / samples_per_s) if samples_per_s else 0
    # Each part with its importance: the part with the highest number is left out first.
    parts = [
        (0, f"{newest.phase:<9} {newest.end:>9,}/{planned_samples:,} samples"),
        (3, f"lr {newest.lr:.2e}"),
        (1, f"loss {newest.loss:.4f}"),
        (5, "" if perplexity is None else f"text {perplexity:.4g}"),
        (4, f"{tokens_per_s:>9,.0f} tokens/s"),
        (8, f"{tflops:.3g} TFLOP/s"),
        (7, f"{newest.memory_gb:.1f} GB"),
        (9, f"filled {filled / (computed + filled):.1%}" if filled else ""),
        (6, f"data wait {data_wait:.0%}"),
        (2, idle or f"{format_clock(seconds_left)} left"),
    ]
    parts = [part for part in parts if part[1]]
    while len(line := "  ".join(text for _, text in parts)) > columns and len(parts) > 1:
        parts.remove(max(parts))
    return line[:columns]

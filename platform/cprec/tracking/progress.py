"""The live progress line of a training run.

On a terminal it is one line that rewrites itself; elsewhere it is a plain line now and then.
"""

import sys
import time
from collections.abc import Sequence

from cluster.console import Say
from cprec.runs.records import PerplexityMeasured, TraceRow

LOG_INTERVAL_S = 10.0
"""Seconds between two plain lines, at least; a new phase is shown at once."""

RECENT_STEPS = 50
"""Steps over which the line averages its speeds."""


class Progress:
    """Shows where a run stands, as its trace rows arrive."""

    def __init__(self, planned_samples: int, say: Say) -> None:
        """Starts without a line.

        Args:
            planned_samples: Samples of the plan at the start; it may grow.
            say: Takes the plain lines.
        """
        self._planned_samples = planned_samples
        self._say = say
        self._terminal = sys.stdout.isatty()
        self._last_shown = 0.0
        self._recent: list[TraceRow] = []
        self._phase = ""
        self._perplexity: float | None = None

    def update(
        self,
        rows: Sequence[TraceRow],
        perplexities: Sequence[PerplexityMeasured] = (),
        waiting: bool = False,
    ) -> None:
        """Takes news of the run and shows where it stands.

        Args:
            rows: New trace rows.
            perplexities: New perplexities of the text.
            waiting: Whether the stable phase is held open and has nothing left to train.
        """
        if perplexities:
            self._perplexity = perplexities[-1].perplexity
        if waiting and self._phase != "waiting":
            self._phase = "waiting"
            self._say(
                "waiting: the stable phase is trained and held open; append a domain, or "
                "jobs/control.py --run NAME release"
            )
        if not rows:
            return
        self._recent = [*self._recent, *rows][-RECENT_STEPS:]
        phase_changed = rows[-1].phase != self._phase
        self._phase = rows[-1].phase
        text = format_progress(
            self._recent, max(self._planned_samples, rows[-1].planned), self._perplexity
        )
        if self._terminal:
            print(f"\r\x1b[2K{text}", end="", flush=True)
        elif phase_changed or time.monotonic() - self._last_shown >= LOG_INTERVAL_S:
            self._last_shown = time.monotonic()
            self._say(text)

    def close(self) -> None:
        """Ends the line that rewrites itself, so that the next output begins below it."""
        if self._terminal and self._recent:
            print(flush=True)


def format_progress(
    recent: Sequence[TraceRow], planned_samples: int, perplexity: float | None = None
) -> str:
    """Returns the progress line: the state after the newest step, and speeds over recent steps.

    Args:
        recent: Trace rows of recent steps, the newest last.
        planned_samples: Samples of the plan.
        perplexity: Perplexity of evaluate.text as last measured; None if it never was.
    """
    newest = recent[-1]
    seconds = sum(row.step_s + row.data_wait_s for row in recent) or 1e-9
    samples_per_s = sum(row.batch_samples for row in recent) / seconds
    tokens_per_s = sum(row.tokens for row in recent) / seconds
    tflops = sum(row.tflops * row.step_s for row in recent) / seconds
    data_wait = sum(row.data_wait_s for row in recent) / seconds
    seconds_left = int((planned_samples - newest.end) / samples_per_s) if samples_per_s else 0
    text = "" if perplexity is None else f"text {perplexity:.4g}  "
    return (
        f"{newest.phase:<9} {newest.end:>9,}/{planned_samples:,} samples  "
        f"lr {newest.lr:.2e}  loss {newest.loss:.4f}  {text}"
        f"{tokens_per_s:>9,.0f} tokens/s  {tflops:.3g} TFLOP/s  {newest.memory_gb:.1f} GB  "
        f"data wait {data_wait:.0%}  {seconds_left // 60}:{seconds_left % 60:02d} left"
    )

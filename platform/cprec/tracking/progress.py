"""The live progress line: one line that rewrites itself on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections.abc import Sequence

from cluster.console import Say
from cprec.runs.records import PerplexityMeasured, TraceRow

LOG_INTERVAL_S = 10.0


class Progress:
    """Shows trace rows as they come: phase, samples of all, rate, loss, the last perplexity of the text, tokens/s, data wait, time left."""

    def __init__(self, planned_samples: int, say: Say) -> None:
        self._planned_samples, self._say = planned_samples, say
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
        """Take in new rows and perplexities (events) and show where the run stands. waiting: the stable phase is held open and dry."""
        self._perplexity = perplexities[-1].perplexity if perplexities else self._perplexity
        if waiting and self._phase != "waiting":
            self._phase = "waiting"
            self._say(
                "waiting: the stable phase is trained and held open; append a domain, or jobs/control.py --run NAME release"
            )
        if not rows:
            return
        self._recent = [*self._recent, *rows][-50:]
        changed = rows[-1].phase != self._phase
        self._phase = rows[-1].phase
        text = format_progress(
            self._recent, max(self._planned_samples, rows[-1].planned), self._perplexity
        )
        if self._terminal:
            print(f"\r\x1b[2K{text}", end="", flush=True)
        elif changed or time.monotonic() - self._last_shown >= LOG_INTERVAL_S:
            self._last_shown = time.monotonic()
            self._say(text)

    def close(self) -> None:
        """End the live line."""
        if self._terminal and self._recent:
            print(flush=True)


def format_progress(
    recent: Sequence[TraceRow], planned_samples: int, perplexity: float | None = None
) -> str:
    """One line about the newest row; rates are over the recent rows. total: samples of the plan; perplexity: of the text, as last measured."""
    row = recent[-1]
    seconds = sum(r.step_s + r.data_wait_s for r in recent) or 1e-9
    done = row.end
    speed = sum(r.batch_samples for r in recent) / seconds
    left = int((planned_samples - done) / speed) if speed else 0
    waited = sum(r.data_wait_s for r in recent) / seconds
    tokens = sum(r.tokens for r in recent) / seconds
    text = "" if perplexity is None else f"text {perplexity:.4g}  "
    rate = sum(r.tflops * r.step_s for r in recent) / seconds
    return (
        f"{row.phase:<9} {done:>9,}/{planned_samples:,} samples  lr {row.lr:.2e}  loss {row.loss:.4f}  {text}{tokens:>9,.0f} tokens/s  "
        f"{rate:.3g} TFLOP/s  {row.memory_gb:.1f} GB  data wait {waited:.0%}  {left // 60}:{left % 60:02d} left"
    )

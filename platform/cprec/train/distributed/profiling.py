"""A torch profiler's trace of a few steps (`train.profile`), after the first ones, which compile and warm up."""

import gzip
import tempfile
from pathlib import Path

import torch

from cluster.storage import write_bytes

SKIPPED_STEPS = 3
"""Steps before the profile begins."""


class StepProfiler:
    """Counts steps; starts and stops the profiler; writes the trace for a browser (chrome://tracing, perfetto) to a URI. Does nothing for 0 steps."""

    def __init__(self, steps: int, uri: str) -> None:
        self._last_step, self._uri = SKIPPED_STEPS + steps if steps else 0, uri
        self._steps = 0
        self._profiler: torch.profiler.profile | None = None

    def on_step_end(self) -> None:
        """A step is done."""
        self._steps += 1
        if self._steps == SKIPPED_STEPS < self._last_step:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        if self._steps == self._last_step and self._profiler is not None:
            self._profiler.stop()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "trace.json"
                self._profiler.export_chrome_trace(str(file))
                write_bytes(self._uri, gzip.compress(file.read_bytes()))
            self._profiler = None

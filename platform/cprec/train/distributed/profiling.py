"""A torch profiler's trace of a few steps (`train.profile`)."""

import gzip
import tempfile
from pathlib import Path

import torch

from cluster.storage import write_bytes

SKIPPED_STEPS = 3
"""Steps before the profile begins: the first ones compile and warm up."""


class StepProfiler:
    """Profiles some steps, and writes the trace to a file for a browser.

    chrome://tracing and https://ui.perfetto.dev open it.
    """

    def __init__(self, steps: int, uri: str) -> None:
        """Begins to count steps.

        Args:
            steps: Steps to profile; 0: none.
            uri: File of the trace (.json.gz).
        """
        self._last_step = SKIPPED_STEPS + steps if steps else 0
        self._uri = uri
        self._steps = 0
        self._profiler: torch.profiler.profile | None = None

    def on_step_end(self) -> None:
        """Counts a step; starts the profiler, or stops it and writes the trace, if due."""
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

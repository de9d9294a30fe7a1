"""A torch profiler's trace of a few steps (`train.profile`), after the first ones, which compile and warm up."""

import gzip
import tempfile
from pathlib import Path

import torch

from cluster.storage import write_bytes

SKIPPED = 3
"""Steps before the profile begins."""


class Profile:
    """Counts steps; starts and stops the profiler; writes the trace for a browser (chrome://tracing, perfetto) to a URI. Does nothing for 0 steps."""

    def __init__(self, steps: int, uri: str) -> None:
        self._last, self._uri = SKIPPED + steps if steps else 0, uri
        self._seen = 0
        self._profiler: torch.profiler.profile | None = None

    def stepped(self) -> None:
        """A step is done."""
        self._seen += 1
        if self._seen == SKIPPED < self._last:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        if self._seen == self._last and self._profiler is not None:
            self._profiler.stop()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "trace.json"
                self._profiler.export_chrome_trace(str(file))
                write_bytes(self._uri, gzip.compress(file.read_bytes()))
            self._profiler = None

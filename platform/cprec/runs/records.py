"""A run's own records: events.jsonl, trace.jsonl and plan.json below <storage>/<run>/ (contracts.md).

On a disk each line is appended; on an object store, which cannot append, the file is put again at every flush.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.storage import exists, is_remote, join, read_text, write_text

EVENTS, TRACE, PLAN, AUDIT, RESOLVED = (
    "events.jsonl",
    "trace.jsonl",
    "plan.json",
    "audit.json",
    "resolved.yaml",
)

PERPLEXITY_EVENT = "perplexity_measured"
"""The event of a measured perplexity of evaluate.text: {"perplexity"}, of the model after `samples` samples."""


class JsonLinesFile:
    """A file of JSON lines with one writer. `flush` makes durable what was added; a last line that a crash cut short is dropped at opening."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._unflushed: list[str] = []
        self._flushed = _complete_lines(read_text(uri)) if exists(uri) else []
        write_text(uri, "".join(self._flushed))

    def append(self, value: dict[str, Any]) -> None:
        """Append one object."""
        self._unflushed.append(json.dumps(value, separators=(",", ":")) + "\n")

    def retain(self, predicate: Callable[[dict[str, Any]], bool]) -> None:
        """Drop every line that is not wanted, durably."""
        self.flush()
        self._flushed = [line for line in self._flushed if predicate(json.loads(line))]
        write_text(self._uri, "".join(self._flushed))

    def read(self) -> list[dict[str, Any]]:
        """All objects so far."""
        return [json.loads(line) for line in self._flushed + self._unflushed]

    def flush(self) -> None:
        """Make everything that was added durable."""
        if not self._unflushed:
            return
        new, self._unflushed = self._unflushed, []
        self._flushed += new
        if is_remote(self._uri):
            write_text(self._uri, "".join(self._flushed))
            return
        with Path(self._uri).open("a", encoding="utf-8") as file:
            file.write("".join(new))
            file.flush()
            os.fsync(file.fileno())


def event(name: str, samples: int, **values: Any) -> dict[str, Any]:
    """One object of events.jsonl. time: seconds since 1970."""
    return {"time": round(time.time(), 3), "event": name, "samples": samples, **values}


def read_json_lines(uri: str) -> list[dict[str, Any]]:
    """All objects of a file of JSON lines; empty if it is not there."""
    return [json.loads(line) for line in _complete_lines(read_text(uri))] if exists(uri) else []


def run_uri(storage: str, run: str) -> str:
    """Where a run lives."""
    return join(storage, run)


def _complete_lines(text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

"""Files of JSON lines that hold a run's records, with one writer and any number of readers.

On a disk each line is appended. On an object store, which cannot append, every flush writes the
whole file again.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from cluster.storage import exists, is_remote, join, read_text, write_text
from cprec.runs.records import EVENTS_FILE, TRACE_FILE, Event, Record, TraceRow, parse_event

R = TypeVar("R", bound=Record)
Parser = Callable[[Mapping[str, Any]], R]


class JsonLinesFile(Generic[R]):
    """A file of records that this process writes.

    A last line that a crash cut short is dropped when the file is opened.
    """

    def __init__(self, uri: str, parse: Parser[R]) -> None:
        """Opens or creates the file.

        Args:
            uri: Path or `s3://` URI of the file.
            parse: Builds a record from the plain data of a line.
        """
        self._uri, self._parse = uri, parse
        self._unflushed: list[str] = []
        self._flushed = _complete_lines(read_text(uri)) if exists(uri) else []
        write_text(uri, "".join(self._flushed))

    def append(self, record: R) -> None:
        """Adds a record; `flush` makes it durable."""
        self._unflushed.append(json.dumps(record.to_json(), separators=(",", ":")) + "\n")

    def retain(self, predicate: Callable[[R], bool]) -> None:
        """Drops every record for which the predicate is false, durably."""
        self.flush()
        self._flushed = [line for line in self._flushed if predicate(self._record(line))]
        write_text(self._uri, "".join(self._flushed))

    def read(self) -> list[R]:
        """Returns all records so far, those that are not durable yet included."""
        return [self._record(line) for line in self._flushed + self._unflushed]

    def flush(self) -> None:
        """Makes every appended record durable."""
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

    def _record(self, line: str) -> R:
        return self._parse(json.loads(line))


def open_events(run_uri: str) -> JsonLinesFile[Event]:
    """Opens a run's events.jsonl for writing."""
    return JsonLinesFile(join(run_uri, EVENTS_FILE), parse_event)


def open_trace(run_uri: str) -> JsonLinesFile[TraceRow]:
    """Opens a run's trace.jsonl for writing."""
    return JsonLinesFile(join(run_uri, TRACE_FILE), TraceRow.from_json)


def read_events(run_uri: str) -> list[Event]:
    """Reads a run's events; none if it has no such file."""
    return _read(join(run_uri, EVENTS_FILE), parse_event)


def read_trace(run_uri: str) -> list[TraceRow]:
    """Reads a run's trace; no row if it has no such file."""
    return _read(join(run_uri, TRACE_FILE), TraceRow.from_json)


def _read(uri: str, parse: Parser[R]) -> list[R]:
    if not exists(uri):
        return []
    return [parse(json.loads(line)) for line in _complete_lines(read_text(uri))]


def _complete_lines(text: str) -> list[str]:
    """Returns the lines that end with a line feed: one that a crash cut short does not."""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

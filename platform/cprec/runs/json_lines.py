"""Files of JSON lines that hold a run's records, with one writer and any number of readers.

On a disk each line is appended; after an append that failed, the file is replaced. On an object
store, which cannot append, every flush writes the whole file again.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from cluster import local_files
from cluster.errors import RunError
from cluster.storage import (
    is_remote,
    join,
    read_bytes_if_exists,
    read_from,
    sha256,
    write_bytes,
)
from cluster.storage_errors import name_errors
from cprec.runs.control.fence import UNFENCED, RunWriter
from cprec.runs.events import Event, RecordDropped, parse_event
from cprec.runs.records import EVENTS_FILE, TRACE_FILE, Record, TraceRow

TAIL_BYTES = 1 << 14
"""Bytes at the end of a file that hold its last record."""

R = TypeVar("R", bound=Record)
Parser = Callable[[Mapping[str, Any]], R]


class JsonLinesFile(Generic[R]):
    """A file of records that this process writes.

    A last line that a crash cut short is dropped when the file is opened. Any other line that is no
    record is dropped too, and the file is copied as it was before.

    Attributes:
        damage: One sentence per line that was not a record.
    """

    def __init__(self, uri: str, parse: Parser[R], writer: RunWriter = UNFENCED) -> None:
        """Opens or creates the file.

        Args:
            uri: Path or `s3://` URI of the file.
            parse: Builds a record from the plain data of a line.
            writer: What the file is written through.
        """
        self._uri, self._parse, self._writer = uri, parse, writer
        self._unflushed: list[str] = []
        content = read_bytes_if_exists(uri) or b""
        lines, damaged = _split_damaged(content, parse)
        self.damage = []
        if damaged:
            # Under a name of its own: a file may be damaged more than once.
            copy = f"{uri}.damaged-{sha256(content)[:8]}"
            write_bytes(copy, content)
            self.damage = [f"{uri}: line {n} was not a record; see {copy}" for n in damaged]
        self._flushed = lines
        self._replace(self._flushed)
        self._is_as_flushed = True  # not after an append that failed: then it is replaced

    def append(self, record: R) -> None:
        """Adds a record; `flush` makes it durable."""
        values = record.to_json()
        if self._writer.number is not None:
            values["lease"] = self._writer.number
        self._unflushed.append(json.dumps(values, separators=(",", ":")) + "\n")

    def retain(self, predicate: Callable[[R], bool]) -> None:
        """Drops every record for which the predicate is false, durably."""
        self.flush()
        retained = [line for line in self._flushed if predicate(self._record(line))]
        self._replace(retained)
        self._flushed = retained

    def read(self) -> list[R]:
        """Returns all records so far, those that are not durable yet included."""
        return [self._record(line) for line in self._flushed + self._unflushed]

    def flush(self) -> None:
        """Makes every appended record durable.

        If that fails, the file is as it was before, and the next call writes the records.
        """
        if not self._unflushed:
            return
        if is_remote(self._uri) or not self._is_as_flushed:
            self._replace(self._flushed + self._unflushed)
        else:
            self._is_as_flushed = False
            with name_errors(self._uri), self._writer.appending(self._uri) as path:
                local_files.append(path, "".join(self._unflushed).encode())
        self._is_as_flushed = True
        self._flushed += self._unflushed
        self._unflushed = []

    def _replace(self, lines: list[str]) -> None:
        self._writer.replace(self._uri, "".join(lines).encode())

    def _record(self, line: str) -> R:
        return self._parse(json.loads(line))


def open_events(run_uri: str, writer: RunWriter = UNFENCED) -> JsonLinesFile[Event]:
    """Opens a run's events.jsonl for writing; an event names each damaged line."""
    events = JsonLinesFile(join(run_uri, EVENTS_FILE), parse_event, writer)
    for problem in events.damage:
        events.append(RecordDropped(samples=0, because=problem))
    return events


def open_trace(run_uri: str, writer: RunWriter = UNFENCED) -> JsonLinesFile[TraceRow]:
    """Opens a run's trace.jsonl for writing."""
    return JsonLinesFile(join(run_uri, TRACE_FILE), TraceRow.from_json, writer)


def read_events(run_uri: str) -> list[Event]:
    """Reads a run's events; none if it has no such file. Damaged lines are left out."""
    uri = join(run_uri, EVENTS_FILE)
    lines, _ = _split_damaged(read_bytes_if_exists(uri) or b"", parse_event)
    return [parse_event(json.loads(line)) for line in lines]


def read_trace(run_uri: str) -> list[TraceRow]:
    """Reads a run's trace; no row if it has no such file.

    Raises:
        RunError: A line is damaged.
    """
    uri = join(run_uri, TRACE_FILE)
    lines, damaged = _split_damaged(read_bytes_if_exists(uri) or b"", TraceRow.from_json)
    if damaged:
        raise RunError(
            f"{uri}: line {damaged[0]} is not a record; restore the file, or start the run again, "
            "which goes on from its last checkpoint"
        )
    return [TraceRow.from_json(json.loads(line)) for line in lines]


def read_newest_step(run_uri: str) -> TraceRow | None:
    """Reads the last row of a run's trace, and no more of the file; None if it has none."""
    lines, _ = _split_damaged(
        read_from(join(run_uri, TRACE_FILE), -TAIL_BYTES) or b"", TraceRow.from_json
    )
    return TraceRow.from_json(json.loads(lines[-1])) if lines else None


def _split_damaged(content: bytes, parse: Parser[R]) -> tuple[list[str], list[int]]:
    """Returns the lines of a file that hold records, and the numbers (from 1) of those that do not.

    A last line without a line feed is neither: a crash cut it short.
    """
    lines, damaged = [], []
    for number, raw_line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            line = raw_line.decode("utf-8")
            parse(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged.append(number)
        else:
            lines.append(f"{line}\n")
    return lines, damaged

"""Files of JSON lines that hold a run's records, with one writer and any number of readers.

On a disk each line is appended; after an append that failed, the file is replaced. On an object
store, which cannot append, every flush writes the whole file again.
"""

import json
from collections.abc import Callable, Mapping
from itertools import islice
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
from cprec.runs.record_files import parse_json
from cprec.runs.records import EVENTS_FILE, TRACE_FILE, Record, TraceRow

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
    content = read_bytes_if_exists(join(run_uri, EVENTS_FILE)) or b""
    records = (_parse_line(line, parse_event) for line in _whole_lines(content))
    return [event for event in records if event is not None]


def read_trace(run_uri: str) -> list[TraceRow]:
    """Reads a run's trace; no row if it has no such file.

    Raises:
        RunError: A line is damaged.
    """
    uri = join(run_uri, TRACE_FILE)
    rows = []
    for number, line in enumerate(_whole_lines(read_bytes_if_exists(uri) or b""), 1):
        row = _parse_line(line, TraceRow.from_json)
        if row is None:
            raise RunError(
                f"{uri}: line {number} is not a record; restore the file, or start the run again, "
                "which goes on from its last checkpoint"
            )
        rows.append(row)
    return rows


def read_tail(uri: str, size: int, parse: Parser[R], count: int | None = None) -> list[R]:
    """Reads the last records of a file, in order; none if there is no such file.

    Args:
        uri: Path or `s3://` URI of the file.
        size: Bytes that are read, at most.
        parse: Builds a record from the plain data of a line; damaged lines are left out.
        count: Records, at most; None: all that these bytes hold.
    """
    content = read_from(uri, -size) or b""
    # The first line may be cut.
    whole = content.partition(b"\n")[2] if len(content) >= size else content
    records = (_parse_line(line, parse) for line in reversed(_whole_lines(whole)))
    return list(islice((record for record in records if record is not None), count))[::-1]


def _whole_lines(content: bytes) -> list[bytes]:
    """Returns the lines of a file; a last one without a line feed was cut short by a crash."""
    return content.split(b"\n")[:-1]


def _parse_line(line: bytes, parse: Parser[R]) -> R | None:
    """Returns the record of a line; None if it holds none."""
    try:
        return parse(parse_json(line))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _split_damaged(content: bytes, parse: Parser[R]) -> tuple[list[str], list[int]]:
    """Returns the lines of a file that hold records, and the numbers (from 1) of all others."""
    lines, damaged = [], []
    for number, line in enumerate(_whole_lines(content), 1):
        if _parse_line(line, parse) is None:
            damaged.append(number)
        else:
            lines.append(f"{line.decode('utf-8')}\n")
    return lines, damaged

"""Tables that are put aside on the local disk until they are wanted, so that memory does not grow with what is made."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.ipc

Columns = Mapping[str, pl.DataType | type[pl.DataType]]

AT_ONCE = 1 << 18
"""Rows of a part that are read again at a time, or a few more."""


@dataclass(frozen=True)
class Aside:
    """Where a table lies."""

    start: int
    size: int


class Scratch:
    """A file of tables. For several threads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._end, self._lock = file.fileno(), 0, Lock()

    def put(self, table: pa.Table) -> Aside:
        """Put a table aside."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content = memoryview(sink.getvalue())
        with self._lock:
            place = Aside(self._end, content.nbytes)
            self._end += content.nbytes
        done = 0
        while done < place.size:
            done += os.pwrite(self._file, content[done:], place.start + done)
        return place

    def get(self, place: Aside) -> pa.Table:
        """Read a table again."""
        parts, done = [], 0
        while done < place.size:
            parts.append(os.pread(self._file, place.size - done, place.start + done))
            done += len(parts[-1])
        with pa.ipc.open_stream(b"".join(parts)) as stream:
            return stream.read_all()


class Parts:
    """Rows that are put aside in parts: those with one key lie in one part, and keys fill parts evenly. For several threads."""

    def __init__(self, aside: Scratch, count: int, schema: Columns) -> None:
        """count: of parts. schema: columns of the rows; the first one is the key."""
        self.count, self._aside, self._schema = count, aside, dict(schema)
        self._places: list[list[tuple[Aside, int]]] = [[] for _ in range(count)]

    def put(self, rows: pl.DataFrame) -> None:
        """Put rows aside, each in its part."""
        key = pl.col(
            next(iter(self._schema))
        )  # its hash is polars' own, so it only holds in this process
        cut = rows.select(*self._schema).with_columns(part=key.hash() % self.count)
        for (part,), of_part in cut.partition_by("part", as_dict=True, include_key=False).items():
            self._places[part].append((self._aside.put(of_part.to_arrow()), of_part.height))

    def part(self, number: int) -> Iterator[pl.DataFrame]:
        """The rows of a part again, some AT_ONCE at a time."""
        held, rows = [pl.DataFrame(schema=self._schema)], 0
        for place, height in self._places[number]:
            held.append(pl.DataFrame(self._aside.get(place)))
            rows += height
            if rows >= AT_ONCE:
                yield pl.concat(held)
                held, rows = held[:1], 0
        if rows:
            yield pl.concat(held)

    def whole(self, number: int) -> pl.DataFrame:
        """All rows of a part at once."""
        return pl.concat([pl.DataFrame(schema=self._schema), *self.part(number)])


@contextmanager
def scratch() -> Iterator[Scratch]:
    """A file without a name in the folder for temporary files (TMPDIR): gone with its process, however that ends."""
    with tempfile.TemporaryFile() as file:
        yield Scratch(file)

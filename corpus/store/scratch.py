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

ColumnTypes = Mapping[str, pl.DataType | type[pl.DataType]]

BATCH_ROWS = 1 << 18
"""Rows of a part that are read again at a time, or a few more."""


THREADS = 2
"""Tables that are built and written at a time. Memory grows with it; for more, use a cluster."""


@dataclass(frozen=True)
class ByteRange:
    """Where a table lies."""

    offset: int
    size: int


class ScratchFile:
    """A file of tables. For several threads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._end, self._lock = file.fileno(), 0, Lock()

    def write(self, table: pa.Table) -> ByteRange:
        """Put a table aside."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content = memoryview(sink.getvalue())
        with self._lock:
            place = ByteRange(self._end, content.nbytes)
            self._end += content.nbytes
        done = 0
        while done < place.size:
            done += os.pwrite(self._file, content[done:], place.offset + done)
        return place

    def read(self, location: ByteRange) -> pa.Table:
        """Read a table again."""
        parts, done = [], 0
        while done < location.size:
            parts.append(os.pread(self._file, location.size - done, location.offset + done))
            done += len(parts[-1])
        with pa.ipc.open_stream(b"".join(parts)) as stream:
            return stream.read_all()


class HashPartitions:
    """Rows that are put aside in parts: those with one key lie in one part, and keys fill parts evenly. For several threads."""

    def __init__(self, file: ScratchFile, num_partitions: int, schema: ColumnTypes) -> None:
        """count: of parts. schema: columns of the rows; the first one is the key."""
        self.num_partitions, self._file, self._schema = num_partitions, file, dict(schema)
        self._locations: list[list[tuple[ByteRange, int]]] = [[] for _ in range(num_partitions)]

    def append(self, rows: pl.DataFrame) -> None:
        """Put rows aside, each in its part."""
        key = pl.col(
            next(iter(self._schema))
        )  # its hash is polars' own, so it only holds in this process
        cut = rows.select(*self._schema).with_columns(part=key.hash() % self.num_partitions)
        for (part,), of_part in cut.partition_by("part", as_dict=True, include_key=False).items():
            self._locations[part].append((self._file.write(of_part.to_arrow()), of_part.height))

    def read_batches(self, index: int) -> Iterator[pl.DataFrame]:
        """The rows of a part again, some AT_ONCE at a time."""
        held, rows = [pl.DataFrame(schema=self._schema)], 0
        for place, height in self._locations[index]:
            held.append(pl.DataFrame(self._file.read(place)))
            rows += height
            if rows >= BATCH_ROWS:
                yield pl.concat(held)
                held, rows = held[:1], 0
        if rows:
            yield pl.concat(held)

    def read(self, index: int) -> pl.DataFrame:
        """All rows of a part at once."""
        return pl.concat([pl.DataFrame(schema=self._schema), *self.read_batches(index)])


@contextmanager
def open_scratch_file() -> Iterator[ScratchFile]:
    """A file without a name in the folder for temporary files (TMPDIR): gone with its process, however that ends."""
    with tempfile.TemporaryFile() as file:
        yield ScratchFile(file)

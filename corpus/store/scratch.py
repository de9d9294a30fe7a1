"""Tables kept in a temporary file on the local disk, so that memory does not grow with them."""

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
"""Rows of a partition that are read back at a time, or slightly more."""

THREADS = 2
"""Tables built and written at a time. Memory grows with it; use a cluster for more."""


@dataclass(frozen=True)
class ByteRange:
    """Location of a table in a scratch file, in bytes."""

    offset: int
    size: int


class ScratchFile:
    """A file of Arrow tables that several threads may write and read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file.fileno()
        self._end = 0
        self._lock = Lock()

    def write(self, table: pa.Table) -> ByteRange:
        """Appends a table and returns its location."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content = memoryview(sink.getvalue())
        # Only the range is reserved under the lock; threads then write to their ranges together.
        with self._lock:
            location = ByteRange(self._end, content.nbytes)
            self._end += content.nbytes
        written = 0
        while written < location.size:
            written += os.pwrite(self._file, content[written:], location.offset + written)
        return location

    def read(self, location: ByteRange) -> pa.Table:
        """Reads the table at a location."""
        chunks: list[bytes] = []
        num_read = 0
        while num_read < location.size:
            chunks.append(
                os.pread(self._file, location.size - num_read, location.offset + num_read)
            )
            num_read += len(chunks[-1])
        with pa.ipc.open_stream(b"".join(chunks)) as stream:
            return stream.read_all()


class HashPartitions:
    """Rows in a scratch file, partitioned evenly by a hash of their key; for several threads."""

    def __init__(self, file: ScratchFile, num_partitions: int, schema: ColumnTypes) -> None:
        """Starts with no rows.

        Args:
            file: File that the rows are written to.
            num_partitions: Number of partitions.
            schema: Columns that are kept of the rows; the first one is the key.
        """
        self.num_partitions = num_partitions
        self._file = file
        self._schema = dict(schema)
        self._locations: list[list[tuple[ByteRange, int]]] = [[] for _ in range(num_partitions)]

    def append(self, rows: pl.DataFrame) -> None:
        """Writes rows to their partitions."""
        # polars' own hash is only stable within a process, which is as long as the file lives.
        key = pl.col(next(iter(self._schema)))
        assigned = rows.select(*self._schema).with_columns(part=key.hash() % self.num_partitions)
        parts = assigned.partition_by("part", as_dict=True, include_key=False)
        for (index,), part in parts.items():
            self._locations[index].append((self._file.write(part.to_arrow()), part.height))

    def read_batches(self, index: int) -> Iterator[pl.DataFrame]:
        """Yields the rows of a partition, about BATCH_ROWS at a time."""
        empty = pl.DataFrame(schema=self._schema)
        batch = [empty]
        num_rows = 0
        for location, height in self._locations[index]:
            batch.append(pl.DataFrame(self._file.read(location)))
            num_rows += height
            if num_rows >= BATCH_ROWS:
                yield pl.concat(batch)
                batch = [empty]
                num_rows = 0
        if num_rows:
            yield pl.concat(batch)

    def read(self, index: int) -> pl.DataFrame:
        """Returns all rows of a partition."""
        return pl.concat([pl.DataFrame(schema=self._schema), *self.read_batches(index)])


@contextmanager
def open_scratch_file() -> Iterator[ScratchFile]:
    """Opens a file without a name in the folder for temporary files (TMPDIR).

    The file disappears with its process, however that ends.
    """
    with tempfile.TemporaryFile() as file:
        yield ScratchFile(file)

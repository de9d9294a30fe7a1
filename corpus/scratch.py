"""Tables that are put aside on the local disk until they are wanted, so that memory does not grow with what is made."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import IO

import pyarrow as pa
import pyarrow.ipc


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


@contextmanager
def scratch() -> Iterator[Scratch]:
    """A file without a name in the folder for temporary files (TMPDIR): gone with its process, however that ends."""
    with tempfile.TemporaryFile() as file:
        yield Scratch(file)

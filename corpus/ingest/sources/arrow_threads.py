"""Keeps objects of Python out of Arrow's threads when the interpreter ends.

Arrow reads streams ahead in threads of its own, and a thread may be the last to hold an object
of Python, such as the stream or bytes of it. To let go of it, the thread needs the interpreter. If
that has ended meanwhile, as after an error, the whole process aborts ("terminate called").
"""

import time
import weakref
from typing import BinaryIO

_WAIT_S = 10.0
"""How long to wait for Arrow's threads, which need milliseconds."""
_POLL_S = 0.001


class _Chunk(bytearray):
    """Bytes of a stream, to which there can be weak references."""


class _TrackedStream:
    """A stream that remembers what was read from it."""

    closed = False

    def __init__(self, stream: BinaryIO, references: "ArrowReferences") -> None:
        self._stream = stream
        self._references = references

    def read(self, size: int = -1) -> _Chunk:
        """Returns the next bytes; none once `ArrowReferences.wait_for_release` was called."""
        chunk = _Chunk(b"" if self._references.is_over else self._stream.read(size))
        self._references.track(chunk)
        return chunk


class ArrowReferences:
    """The objects of Python that Arrow holds while it reads a stream.

    Attributes:
        is_over: Whether reading is over, though Arrow's threads may still ask for more.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._references: list[weakref.ref[object]] = []

    def wrap(self, stream: BinaryIO) -> _TrackedStream:
        """Returns a stream for Arrow to read; the caller must keep no reference to it."""
        tracked = _TrackedStream(stream, self)
        self.track(tracked)
        return tracked

    def track(self, value: object) -> None:
        """Remembers an object that Arrow is given, without keeping it alive."""
        self._references = [reference for reference in self._references if reference() is not None]
        self._references.append(weakref.ref(value))

    def wait_for_release(self) -> None:
        """Waits until Arrow holds nothing any more; its reader must be gone already."""
        self.is_over = True
        deadline = time.monotonic() + _WAIT_S
        while any(reference() is not None for reference in self._references):
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)

"""Tells any thread whether this process was told to end, before its main thread has noticed.

A handler of Python runs in the main thread, between two of its instructions: while that waits in a
library, a second late or more. The interpreter notes a signal in a pipe at once.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ENDING = {signal.SIGINT, signal.SIGTERM}
_notes: list[tuple[int, str]] = []
"""The reading end of the pipe, and the message; empty where nobody listens."""


@contextmanager
def noting_signals(message: str) -> Iterator[None]:
    """Notes signals while a `with` block runs, in the main thread.

    Args:
        message: What an interrupted process says at its end.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _notes.append((reader, message))
    try:
        yield
    finally:
        _notes.pop()
        signal.set_wakeup_fd(previous)
        os.close(reader)
        os.close(writer)


def message_if_interrupted() -> str | None:
    """Returns the message of `noting_signals` if SIGINT or SIGTERM came; None if none did."""
    for reader, message in _notes:
        with suppress(BlockingIOError):
            if _ENDING & set(os.read(reader, 1 << 10)):
                return message
    return None

"""Finds out how the fields of a text file with a header are quoted, before it is parsed.

RFC 4180 doubles a quote in a quoted field. Spark, Hive and MySQL write a backslash before it.
Arrow's parser must be told which, and passes over text behind a closing quote, which is what the
wrong one of the two leaves behind.
"""

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from typing import BinaryIO

import numpy as np

from cluster.errors import DataError

_CHUNK_BYTES = 1 << 24
_EXCERPT_BYTES = 60
"""Bytes to show on each side of a quote that does not fit."""


class Quoting(Enum):
    """How a quote within a quoted field is written."""

    DOUBLED = "doubled"
    BACKSLASH = "backslash"
    UNQUOTED = "unquoted"
    """Quotes mean nothing: fields are never quoted."""


def find_quoting(
    file: str, open_body: Callable[[], AbstractContextManager[BinaryIO]], delimiter: str
) -> Quoting:
    """Returns the only way of quoting by which a file can be read.

    Args:
        file: URI of the file, for the message.
        open_body: Opens the file behind its header.
        delimiter: The character between fields.

    Raises:
        DataError: A quote fits neither way.
    """
    with open_body() as stream:
        misfit = _find_misfit(stream, delimiter, Quoting.DOUBLED)
    if misfit is None:
        return Quoting.DOUBLED
    with open_body() as stream:
        if _find_misfit(stream, delimiter, Quoting.BACKSLASH) is None:
            return Quoting.BACKSLASH
    if misfit == _UNCLOSED:
        return Quoting.DOUBLED  # the parser reports it, with the row
    if delimiter != ",":
        return Quoting.UNQUOTED
    raise DataError(
        f"{file}: {misfit}; write quotes within a quoted field twice, or the file as parquet"
    )


_UNCLOSED = "a quote that is not closed"


def _find_misfit(stream: BinaryIO, delimiter: str, quoting: Quoting) -> str | None:
    """Returns where the quotes of a file do not fit a way of quoting; None if they all do."""
    checker = _QuoteChecker(delimiter.encode(), quoting is Quoting.BACKSLASH)
    while chunk := stream.read(_CHUNK_BYTES):
        if (misfit := checker.check(chunk)) is not None:
            return misfit
    return checker.check(b"\n") or (_UNCLOSED if checker.is_inside else None)


class _QuoteChecker:
    """Follows the quotes of a file, chunk by chunk.

    Attributes:
        is_inside: Whether the text so far ends within a quoted field.
    """

    def __init__(self, delimiter: bytes, has_escapes: bool) -> None:
        around = b"[" + re.escape(delimiter) + rb"\r\n]"
        escape = rb'\\["\\]' if has_escapes else rb"(?!)"
        # Outside, a quote opens a field only at its beginning; elsewhere it is text. Without
        # escapes, a backslash before it shows that the file has them.
        stray = b"(?!)" if has_escapes else rb'\\"'
        self._opening = re.compile(
            escape + b"|(?P<misfit>" + stray + b")|(?<!(?!" + around + b')[\\s\\S])(?P<quote>")'
        )
        self._closing = re.compile(escape + b'|""|(?P<quote>"(?=' + around + b'))|(?P<misfit>")')
        self._edges = np.zeros(256, bool)
        self._edges[list(delimiter + b'\r\n"')] = True
        self._has_escapes = has_escapes
        self._before = b"\n"
        self._rest = b""
        self._lines = 1
        self.is_inside = False

    def check(self, chunk: bytes) -> str | None:
        """Follows the quotes of the next chunk.

        What ends in a quote or a backslash is held back until the next call.

        Returns:
            The first quote that neither opens nor closes a field, with its line, in words; None if
            there is none so far.
        """
        text = self._rest + chunk
        # What ends in a quote or a backslash is judged with what follows.
        size = len(text.rstrip(b'"\\'))
        complete, self._rest = text[:size], text[size:]
        if size == len(text) and size:
            complete, self._rest = text[:-1], text[-1:]
        if not complete:
            return None
        misfit = None if self._is_strict(complete) else self._search(complete)
        self._lines += complete.count(b"\n")
        self._before = complete[-1:]
        return misfit

    def _is_strict(self, text: bytes) -> bool:
        """Tests fast whether all quotes are doubled, or stand at an end of a field."""
        if b'"' not in text:
            return True
        if self._has_escapes:
            return False
        padded = np.frombuffer(self._before + text + self._rest[:1], np.uint8)
        quotes = np.flatnonzero(padded[1 : len(text) + 1] == ord('"')) + 1
        opening, closing = quotes[self.is_inside :: 2], quotes[not self.is_inside :: 2]
        if not (self._edges[padded[opening - 1]].all() and self._edges[padded[closing + 1]].all()):
            return False
        self.is_inside ^= bool(len(quotes) % 2)
        return True

    def _search(self, text: bytes) -> str | None:
        """Follows the quotes one by one."""
        window = self._before + text + self._rest
        position, end = len(self._before), len(self._before) + len(text)
        while True:
            pattern = self._closing if self.is_inside else self._opening
            match = pattern.search(window, position)
            if match is None or match.start() >= end:
                return None
            if match["misfit"] is not None:
                return self._describe(window, match.start())
            if match["quote"] is not None:
                self.is_inside = not self.is_inside
            position = match.end()

    def _describe(self, window: bytes, position: int) -> str:
        line = self._lines + window.count(b"\n", len(self._before), position) + 1
        before = window[max(0, position - _EXCERPT_BYTES) : position].rpartition(b"\n")[2]
        behind = window[position : position + _EXCERPT_BYTES].partition(b"\n")[0]
        shown = (before + behind).decode("utf-8", "backslashreplace")
        return f"line {line:,} has a quote that neither opens nor closes a field: {shown!r}"


class LoneBackslashDoubler(io.RawIOBase):
    """Bytes in which each backslash that escapes nothing is doubled.

    Spark escapes only quotes and backslashes; Arrow would take any backslash for an escape, and
    leave it out.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._rest = b""
        self._ready = b""

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills a buffer; returns the number of bytes, 0 at the end."""
        while not self._ready:
            chunk = self._stream.read(max(1, len(buffer) // 2))
            text = self._rest + chunk
            held = len(text) - len(text.rstrip(b"\\")) if chunk else 0
            # An odd backslash at the end may escape what follows.
            self._rest = text[len(text) - held % 2 :]
            self._ready = _BACKSLASH.sub(_double_lone, text[: len(text) - held % 2])
            if not chunk and not self._ready:
                return 0
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


_BACKSLASH = re.compile(rb'\\(["\\])?')


def _double_lone(match: re.Match[bytes]) -> bytes:
    return match[0] if match[1] else b"\\\\"

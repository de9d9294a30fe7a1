"""Reads a file of JSON lines as it grows: what was read is not read again."""

import errno
from typing import Any

from cluster.storage import read_bytes_if_exists, read_from
from cprec.runs.record_files import parse_json

ANCHOR_BYTES = 256
"""Bytes before the new ones that must be as they were; else the file was replaced."""


class GrowingFile:
    """The lines that were added to a file since it was last read."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._offset, self._anchor = 0, b""

    def read_new(self) -> tuple[list[dict[str, Any]], bool]:
        """Reads the complete lines that are new.

        Returns:
            (the objects of these lines, whether the file was replaced: then they are all there
            are). A line that holds no object is left out.
        """
        content = self._read_behind_anchor()
        was_replaced = content is None
        if content is None:
            self._offset, self._anchor = 0, b""
            content = read_bytes_if_exists(self._uri) or b""
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        self._anchor = (self._anchor + complete)[-ANCHOR_BYTES:]
        return parse_lines(complete), was_replaced

    def _read_behind_anchor(self) -> bytes | None:
        """Reads what is new; None if the file is another one, or gone."""
        try:
            content = read_from(self._uri, self._offset - len(self._anchor))
        except OSError as error:
            if error.errno != errno.EINVAL:  # what an object store says of a file that is shorter
                raise
            return None
        if content is None:
            return b"" if self._offset == 0 else None
        if not content.startswith(self._anchor):
            return None
        return content[len(self._anchor) :]


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """Parses whole lines; one that holds no JSON object is left out."""
    objects = []
    for line in content.splitlines():
        try:
            value = parse_json(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects

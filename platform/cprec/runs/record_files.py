"""Reads one record from a file that anybody with access to the storage may have damaged."""

import json
from typing import Any, TypeVar

from cluster.errors import RunError
from cluster.storage import read_bytes, read_bytes_if_exists
from cprec.runs.records import Record

R = TypeVar("R", bound=Record)


def read_record(uri: str, kind: type[R], blank_is_missing: bool = False) -> R | None:
    """Reads a record; None if there is no such file.

    Args:
        uri: Path or `s3://` URI of the file.
        kind: Class of the record.
        blank_is_missing: Whether white space counts as no file; `Lease.adopt` makes such files.

    Raises:
        RunError: The file holds something else.
    """
    content = read_bytes_if_exists(uri)
    if content is None or (blank_is_missing and content.isspace()):
        return None
    return parse_record(uri, content, kind)


def parse_record(uri: str, content: bytes, kind: type[R]) -> R:
    """Returns the record that a file holds.

    Args:
        uri: Path or `s3://` URI of the file, for messages.
        content: Its content.
        kind: Class of the record.

    Raises:
        RunError: The file holds something else.
    """
    try:
        return kind.from_json(parse_json(content))
    except (ValueError, RecursionError):
        raise damaged_error(uri, kind.__name__) from None


def read_json_object(uri: str) -> dict[str, Any]:
    """Reads a JSON object from a file that is there.

    Raises:
        RunError: The file holds something else.
    """
    try:
        values = parse_json(read_bytes(uri))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise damaged_error(uri, "JSON object")
    return values


def parse_json(content: bytes) -> Any:
    """Parses JSON whose texts can be written again.

    Raises:
        ValueError: It is no JSON, or a text in it holds half of a character ("\\ud800").
        RecursionError: It is nested too deeply.
    """
    values = json.loads(content.decode("utf-8"))
    if b"\\ud" in content.lower():
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # raises UnicodeEncodeError
    return values


def damaged_error(uri: str, kind: str) -> RunError:
    """Returns the error of a file that holds something else than it should."""
    return RunError(
        f"{uri}: damaged, it holds no {kind}; if no process works on it, "
        "restore the file or delete it"
    )

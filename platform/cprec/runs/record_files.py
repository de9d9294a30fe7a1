"""Reads one record from a file that anybody with access to the storage may have damaged."""

import json
from typing import TypeVar

from cluster.errors import RunError
from cluster.storage import read_bytes_if_exists
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
    try:
        return kind.from_json(json.loads(content.decode("utf-8")))
    except (ValueError, RecursionError):
        raise RunError(
            f"{uri}: damaged, it holds no {kind.__name__}; if no process trains the run, "
            "restore the file or delete it"
        ) from None

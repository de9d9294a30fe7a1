"""A version of a Delta table, as its file in the table's log says it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from cluster import storage
from cluster.errors import CorpusError

METADATA_KEY = "cprec"
"""Key of the plain data that the writer stored with the commit."""
COMMIT_ID_KEY = "cprec_commit"
"""Key of what tells a call of `corpus.store.delta.commit` from all others."""


@dataclass(frozen=True)
class DataFile:
    """A committed parquet file.

    Attributes:
        uri: Full URI.
        rows: Number of rows.
    """

    uri: str
    rows: int


@dataclass(frozen=True)
class AddedFile:
    """A file that a commit added, with the value of each partition column."""

    file: DataFile
    partition: Mapping[str, str]


@dataclass(frozen=True)
class Commit:
    """One version of a table.

    Attributes:
        version: Version that the commit made.
        metadata: Plain data that the writer stored with the commit.
        added: Files that the commit added, sorted by URI.
        removed: URIs of the files that the commit removed.
        transaction_id: Identifies the commit, as given to `commit`; empty if none was given.
        time_ms: Time of the commit, in milliseconds since 1970.
    """

    version: int
    metadata: Mapping[str, Any]
    added: tuple[AddedFile, ...]
    removed: frozenset[str]
    transaction_id: str
    time_ms: int


def parse_commit(table_uri: str, version: int, file: str, log: bytes) -> Commit:
    """Parses the file of a version.

    Args:
        table_uri: URI of the table.
        version: The version.
        file: URI of its file.
        log: Content of the file.

    Raises:
        CorpusError: The file is damaged, or was written by something else.
    """
    actions = read_actions(file, log)
    info = find_info(actions)
    if METADATA_KEY not in info:
        raise CorpusError(
            f"{table_uri}: version {version} was not written by cprec; "
            "restore the table to the version before it, or build the corpus again elsewhere"
        )
    added = [
        AddedFile(
            DataFile(
                _file_uri(table_uri, add["path"]), int(json.loads(add["stats"])["numRecords"])
            ),
            add["partitionValues"],
        )
        for add in (action["add"] for action in actions if "add" in action)
    ]
    removed = frozenset(
        _file_uri(table_uri, action["remove"]["path"]) for action in actions if "remove" in action
    )
    transaction_id = next(
        (str(action["txn"]["appId"]) for action in actions if "txn" in action), ""
    )
    return Commit(
        version,
        info[METADATA_KEY],
        tuple(sorted(added, key=lambda added_file: added_file.file.uri)),
        removed,
        transaction_id,
        int(info.get("timestamp", 0)),
    )


def read_actions(file: str, log: bytes) -> list[dict[str, Any]]:
    """Reads the file of a version: one action, a JSON object, per line.

    Raises:
        CorpusError: The file is damaged.
    """
    try:
        # Not `splitlines`: text in an action may have other characters that it splits at.
        return [json.loads(line) for line in log.strip().split(b"\n")]
    except ValueError as error:
        raise CorpusError(
            f"{file}: a file of the corpus's log is damaged ({error}); "
            "restore it, or build the corpus again elsewhere"
        ) from None


def find_info(actions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what the writer of a version says about it."""
    return next((action["commitInfo"] for action in actions if "commitInfo" in action), {})


def _file_uri(table_uri: str, path: str) -> str:
    """Returns the URI of a file from its path in the log, which is percent-encoded."""
    return storage.join(table_uri, unquote(path))

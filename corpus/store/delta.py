"""Delta tables as cprec uses them: parquet files written first, by anyone; then their list committed in one transaction, by one process.

A file that no commit names does not exist for a reader, so a kill at any moment leaves nothing half-visible. Files are named by their content:
writing one again changes nothing. On S3 a commit is a conditional put; a store that ignores `If-None-Match` loses commits silently and must not
be used.
"""

import io
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from cluster import storage
from cluster.errors import CommitConflictError, CorpusError

MIN_ROW_GROUP_ROWS = 1024
"""Rows that are read together, at least."""

CONCURRENT_PUTS = 8
"""Conditional puts at once, to see whether a store honours them."""

_COMMIT_CACHE: dict[tuple[str, int, str], "Commit"] = {}
"""Commits that this process has read, by table, version and state of the file."""
_COMMIT_CACHE_SIZE = 10_000

_LOG_FOLDER, _COMMIT_FILE_NAME = "_delta_log", re.compile(r"\d{20}\.json")
_METADATA_KEY = "cprec"
# Old versions stay readable for as long as a run may refer to them.
_TABLE_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
}


@dataclass(frozen=True)
class DataFile:
    """A file of rows. path: full URI."""

    uri: str
    rows: int


@dataclass(frozen=True)
class WrittenFile:
    """A file that is written but not committed. name: relative to the table's URI; size: bytes; partition: column to value."""

    name: str
    size: int
    rows: int
    partition: Mapping[str, str]


@dataclass(frozen=True)
class AddedFile:
    """A file that a commit added."""

    file: DataFile
    partition: Mapping[str, str]


@dataclass(frozen=True)
class Commit:
    """One version of a table: what it added, files by name; what it removed; and what its writer says about it.

    transaction: what `commit` was told that it is known by, where that could be kept; time_ms: when it was made, since 1970.
    """

    version: int
    metadata: Mapping[str, Any]
    added: tuple[AddedFile, ...]
    removed: frozenset[str]
    transaction_id: str
    time_ms: int


def storage_options(uri: str) -> dict[str, str]:
    """Options of the object store client; credentials and endpoint come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)."""
    if not storage.is_remote(uri):
        return {}
    options = {"aws_conditional_put": "etag"}
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        options["AWS_REGION"] = "us-east-1"
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    return options


def write_file(
    table_uri: str, stem: str, rows: pa.Table, partition: Mapping[str, str]
) -> WrittenFile:
    """Write rows as one parquet file below a table, by the name <stem>-<digest of its content>.parquet. Every page carries a checksum."""
    buffer = io.BytesIO()
    pq.write_table(
        rows,
        buffer,
        row_group_size=MIN_ROW_GROUP_ROWS,
        compression="zstd",
        write_page_checksum=True,
    )
    content = buffer.getvalue()
    name = f"{stem}-{storage.sha256(content)[:16]}.parquet"
    storage.write_bytes(storage.join(table_uri, name), content)
    return WrittenFile(name, len(content), rows.num_rows, partition)


def commit(
    table_uri: str,
    schema: pa.Schema,
    files: Sequence[WrittenFile],
    *,
    parent_version: int | None,
    partition_by: Sequence[str] = (),
    replace: bool = False,
    metadata: Mapping[str, Any],
    transaction_id: str = "",
) -> int:
    """Add files to a table, or replace all it has, in one transaction; the table is created if it is to follow no version. Returns the new version.

    schema: of the rows and the partition columns. after: the version that this one was made for, None for a new table. metadata: plain data, kept
    with the commit. transaction: what a commit that follows another is known by, so that it is not made twice.
    Raises Overtaken if another process committed in the meantime.
    """
    adds = [
        AddAction(f.name, f.size, dict(f.partition), 0, True, json.dumps({"numRecords": f.rows}))
        for f in files
    ]
    properties = CommitProperties(
        custom_metadata={_METADATA_KEY: dict(metadata)},
        max_commit_retries=0,
        app_transactions=_app_transactions(transaction_id, parent_version),
    )
    newest = _newest_version(table_uri)
    if newest != parent_version:
        raise CommitConflictError(
            f"{table_uri}: another process made version {newest} in the meantime; start again to build on it"
        )
    try:
        if parent_version is None:
            create_table_with_add_actions(
                table_uri,
                Schema.from_arrow(schema),
                adds,
                partition_by=list(partition_by),
                configuration=_TABLE_CONFIGURATION,
                storage_options=storage_options(table_uri),
                commit_properties=properties,
            )
        else:
            mode: Literal["append", "overwrite"] = "overwrite" if replace else "append"
            # Opened at the version that this one was made for: the commit after it is refused if there is one.
            table = DeltaTable(
                table_uri, version=parent_version, storage_options=storage_options(table_uri)
            )
            table.create_write_transaction(
                [*adds],
                mode,
                Schema.from_arrow(schema),
                list(partition_by),
                commit_properties=properties,
            )
    except DeltaError as error:
        if (now := _newest_version(table_uri)) != parent_version:
            raise CommitConflictError(
                f"{table_uri}: another process made version {now} in the meantime; start again to build on it"
            ) from None
        raise CorpusError(
            f"{table_uri}: the commit was refused ({error}); if another process writes here, let it end, then start again"
        ) from None
    return 0 if parent_version is None else parent_version + 1


def read_commits(table_uri: str) -> tuple[Commit, ...]:
    """Every version of a table, oldest first; none if there is no table. Reads what this process has not read yet of the log."""
    place, there = storage.join(table_uri, _LOG_FOLDER), _list_commits(table_uri)
    keys = {number: (table_uri, number, state) for number, state in sorted(there.items())}
    known = {
        number: commit
        for number, key in keys.items()
        if (commit := _COMMIT_CACHE.get(key)) is not None
    }
    missing = [number for number in keys if number not in known]
    logs = storage.read_many([storage.join(place, f"{number:020d}.json") for number in missing])
    fresh = {
        number: _parse_commit(table_uri, number, log)
        for number, log in zip(missing, logs, strict=True)
    }
    found = tuple((fresh.get(number) or known[number]) for number in keys)
    if len(_COMMIT_CACHE) + len(fresh) > _COMMIT_CACHE_SIZE:
        _COMMIT_CACHE.clear()
    _COMMIT_CACHE.update({keys[number]: commit for number, commit in fresh.items()})
    return found


def _list_commits(table_uri: str) -> dict[int, str]:
    """The commits that the log has, each with what tells its file from any other of its name."""
    found = storage.list_etags(storage.join(table_uri, _LOG_FOLDER))
    return {
        int(name.removesuffix(".json")): state
        for name, state in found.items()
        if _COMMIT_FILE_NAME.fullmatch(name)
    }


def _newest_version(table_uri: str) -> int | None:
    return max(_list_commits(table_uri), default=None)


def live_files(commits: Sequence[Commit]) -> tuple[DataFile, ...]:
    """The files of a table after its commits up to one version, by name."""
    found: dict[str, DataFile] = {}
    for commit in commits:
        found = {path: part for path, part in found.items() if path not in commit.removed}
        found |= {added.file.uri: added.file for added in commit.added}
    return tuple(part for _, part in sorted(found.items()))


def _parse_commit(table_uri: str, version: int, log: bytes) -> Commit:
    actions = [json.loads(line) for line in log.decode().splitlines() if line]
    told: dict[str, Any] = next(
        (action["commitInfo"] for action in actions if "commitInfo" in action), {}
    )
    if _METADATA_KEY not in told:
        raise CorpusError(
            f"{table_uri}: version {version} was not written by cprec; restore the table to the version before, or build another"
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
    transaction = next((str(action["txn"]["appId"]) for action in actions if "txn" in action), "")
    return Commit(
        version,
        told[_METADATA_KEY],
        tuple(sorted(added, key=lambda file: file.file.uri)),
        removed,
        transaction,
        int(told.get("timestamp", 0)),
    )


def _file_uri(table_uri: str, path: str) -> str:
    return storage.join(table_uri, unquote(path))


def open_parquet(uri: str) -> pq.ParquetFile:
    """A file of a table, whose page checksums are verified as it is read."""
    fs, place = storage.filesystem(uri)
    return pq.ParquetFile(fs.open(place, "rb"), page_checksum_verification=True)


def check_conditional_put(uri: str) -> None:
    """Of several puts at once that must not replace anything, a store has to let one through and refuse the others; else commits would be lost.

    Asks S3-like stores only; disks and the other object stores have it by their nature. Raises CorpusError.
    """
    if not uri.startswith("s3://"):
        return
    fs, place = storage.filesystem(storage.join(uri, f".conditional-put-{uuid.uuid4().hex[:12]}"))

    def put(number: int) -> bool:
        try:
            fs.pipe_file(place, str(number).encode(), mode="create")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(CONCURRENT_PUTS) as threads:
        let_through = sum(threads.map(put, range(CONCURRENT_PUTS)))
    fs.rm_file(place)
    if let_through != 1:
        raise CorpusError(
            f"{uri}: this store let {let_through} of {CONCURRENT_PUTS} conditional puts (If-None-Match) through, where 1 is right, so commits would be lost; "
            "keep the corpus on a store that honours them (docs/operations.md)"
        )


def _app_transactions(transaction_id: str, parent_version: int | None) -> list[Transaction]:
    """What Delta keeps for a transaction is a number; ours is the version that it makes."""
    return (
        [Transaction(transaction_id, 0 if parent_version is None else parent_version + 1)]
        if transaction_id
        else []
    )

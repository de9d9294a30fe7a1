"""Delta tables as cprec uses them.

Any process may write parquet files; one process then commits their list in one transaction. A file
that no commit names does not exist for a reader, so a kill at any moment leaves nothing half
visible. Files are named after their content, so writing one again changes nothing. On S3 a commit
is a conditional put. A store that ignores `If-None-Match` loses commits silently and must not be
used (docs/operations/object-stores.md).
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
"""Rows of a row group, which is the least that is read at once."""

CONCURRENT_PUTS = 8
"""Simultaneous conditional puts in the test of a store."""

_COMMIT_CACHE: dict[tuple[str, int, str], "Commit"] = {}
"""Commits that this process has read, by table, version and ETag of the commit's file."""
_COMMIT_CACHE_SIZE = 10_000

_LOG_FOLDER = "_delta_log"
_COMMIT_FILE_NAME = re.compile(r"\d{20}\.json")
_METADATA_KEY = "cprec"
# Old versions stay readable for as long as a run may refer to them.
_TABLE_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
}


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
class WrittenFile:
    """A parquet file that is written but not committed.

    Attributes:
        name: Path relative to the table's URI.
        size: Size in bytes.
        rows: Number of rows.
        partition: Value of each partition column.
    """

    name: str
    size: int
    rows: int
    partition: Mapping[str, str]


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


def storage_options(uri: str) -> dict[str, str]:
    """Returns the options of Delta's object store client.

    Credentials and endpoint come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
    """
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
    """Writes rows to one parquet file, with a checksum for every page.

    Args:
        table_uri: URI of the table.
        stem: Path below the table. The file's name is this, a digest of its content and .parquet.
        rows: Rows without the partition columns.
        partition: Value of each partition column.
    """
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
    """Adds files to a table in one transaction.

    Args:
        table_uri: URI of the table.
        schema: Columns of the rows and the partition columns.
        files: Files to add.
        parent_version: Version that the files were made for, which must be the newest. None creates
            the table.
        partition_by: Names of the partition columns.
        replace: Whether to remove all earlier files of the table.
        metadata: Plain data to store with the commit.
        transaction_id: Identifies the commit, so that a caller can tell whether it was made before.

    Returns:
        The new version.

    Raises:
        CommitConflictError: Another process committed in the meantime.
        CorpusError: The commit was refused for another reason.
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
        raise _conflict_error(table_uri, newest)
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
            # Opened at the parent version, so that Delta refuses the commit if a newer one exists.
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
        if (newest := _newest_version(table_uri)) != parent_version:
            raise _conflict_error(table_uri, newest) from None
        raise CorpusError(
            f"{table_uri}: the commit was refused ({error}); "
            "if another process writes here, let it end, then start again"
        ) from None
    return 0 if parent_version is None else parent_version + 1


def _app_transactions(transaction_id: str, parent_version: int | None) -> list[Transaction]:
    """Returns Delta's record of a transaction: its id, and as its number the version it makes."""
    if not transaction_id:
        return []
    return [Transaction(transaction_id, 0 if parent_version is None else parent_version + 1)]


def _conflict_error(table_uri: str, newest: int | None) -> CommitConflictError:
    return CommitConflictError(
        f"{table_uri}: another process made version {newest} in the meantime; "
        "start again to build on it"
    )


def read_commits(table_uri: str) -> tuple[Commit, ...]:
    """Reads every version of a table, oldest first; none if there is no table.

    Only files of the log that this process has not read yet are read.
    """
    log_uri = storage.join(table_uri, _LOG_FOLDER)
    etags = _list_commits(table_uri)
    keys = {version: (table_uri, version, etag) for version, etag in sorted(etags.items())}
    cached = {
        version: entry
        for version, key in keys.items()
        if (entry := _COMMIT_CACHE.get(key)) is not None
    }
    missing = [version for version in keys if version not in cached]
    logs = storage.read_many([storage.join(log_uri, f"{version:020d}.json") for version in missing])
    fresh = {
        version: _parse_commit(table_uri, version, log)
        for version, log in zip(missing, logs, strict=True)
    }
    commits = tuple((fresh.get(version) or cached[version]) for version in keys)
    if len(_COMMIT_CACHE) + len(fresh) > _COMMIT_CACHE_SIZE:
        _COMMIT_CACHE.clear()
    _COMMIT_CACHE.update({keys[version]: commit for version, commit in fresh.items()})
    return commits


def _list_commits(table_uri: str) -> dict[int, str]:
    """Returns the versions in a table's log, each with the ETag of its file.

    The ETag tells the file from another that takes its name, as in a table that was built again.
    """
    etags = storage.list_etags(storage.join(table_uri, _LOG_FOLDER))
    return {
        int(name.removesuffix(".json")): etag
        for name, etag in etags.items()
        if _COMMIT_FILE_NAME.fullmatch(name)
    }


def _newest_version(table_uri: str) -> int | None:
    return max(_list_commits(table_uri), default=None)


def live_files(commits: Sequence[Commit]) -> tuple[DataFile, ...]:
    """Returns the files that a table has after its first commits, sorted by URI."""
    files: dict[str, DataFile] = {}
    for commit in commits:
        files = {uri: file for uri, file in files.items() if uri not in commit.removed}
        files |= {added.file.uri: added.file for added in commit.added}
    return tuple(file for _, file in sorted(files.items()))


def _parse_commit(table_uri: str, version: int, log: bytes) -> Commit:
    """Parses one file of a Delta log: one action, a JSON object, per line."""
    actions = [json.loads(line) for line in log.decode().splitlines() if line]
    info: dict[str, Any] = next(
        (action["commitInfo"] for action in actions if "commitInfo" in action), {}
    )
    if _METADATA_KEY not in info:
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
        info[_METADATA_KEY],
        tuple(sorted(added, key=lambda added_file: added_file.file.uri)),
        removed,
        transaction_id,
        int(info.get("timestamp", 0)),
    )


def _file_uri(table_uri: str, path: str) -> str:
    """Returns the URI of a file from its path in the log, which is percent-encoded."""
    return storage.join(table_uri, unquote(path))


def open_parquet(uri: str) -> pq.ParquetFile:
    """Opens a file of a table; page checksums are verified as it is read.

    Read it with `use_threads=False`: a thread of Arrow that is the last to hold the file, an object
    of Python, aborts the process if the interpreter ends meanwhile.
    """
    fs, path = storage.filesystem(uri)
    return pq.ParquetFile(fs.open(path, "rb"), page_checksum_verification=True)


def check_conditional_put(uri: str) -> None:
    """Tests that a store accepts exactly one of several simultaneous conditional puts.

    A store that accepts more would lose commits. Only s3:// is tested; disks and the other object
    stores are known to do it right.

    Args:
        uri: Place where a corpus is to be written; the test writes and removes one file there.

    Raises:
        CorpusError: The store accepted none, or more than one.
    """
    if not uri.startswith("s3://"):
        return
    fs, path = storage.filesystem(storage.join(uri, f".conditional-put-{uuid.uuid4().hex[:12]}"))

    def put(number: int) -> bool:
        try:
            fs.pipe_file(path, str(number).encode(), mode="create")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(CONCURRENT_PUTS) as threads:
        num_accepted = sum(threads.map(put, range(CONCURRENT_PUTS)))
    fs.rm_file(path)
    if num_accepted != 1:
        raise CorpusError(
            f"{uri}: this store let {num_accepted} of {CONCURRENT_PUTS} conditional puts "
            "(If-None-Match) through, where 1 is right, so commits would be lost; "
            "keep the corpus on a store that honours them (docs/operations/object-stores.md)"
        )

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
import random
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from cluster import storage
from cluster.errors import CommitConflictError, CorpusError, CprecError, PlatformFault
from corpus.store.commits import (
    COMMIT_ID_KEY,
    METADATA_KEY,
    Commit,
    DataFile,
    find_info,
    parse_commit,
    read_actions,
)

MIN_ROW_GROUP_ROWS = 1024
"""Rows of a row group, which is the least that is read at once."""

_COMMIT_CACHE: dict[tuple[str, int, str], Commit] = {}
"""Commits that this process has read, by table, version and ETag of the commit's file."""
_COMMIT_CACHE_SIZE = 10_000

_LOG_FOLDER = "_delta_log"
_COMMIT_FILE_NAME = re.compile(r"\d{20}\.json")

COMMIT_ATTEMPTS = 6
"""Attempts of a commit that nobody has overtaken."""

COMMIT_PAUSE_S = 1.0
"""Longest pause after the first attempt (seconds); it grows with each."""

# Old versions stay readable for as long as a run may refer to them.
_TABLE_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
}


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
        PlatformFault: The disk or the store did not take it, whatever was tried.
    """
    newest = _newest_version(table_uri)
    if newest != parent_version:
        raise _conflict_error(table_uri, newest)
    version = 0 if parent_version is None else parent_version + 1
    commit_id = uuid.uuid4().hex
    properties = CommitProperties(
        custom_metadata={METADATA_KEY: dict(metadata), COMMIT_ID_KEY: commit_id},
        max_commit_retries=0,
        app_transactions=[Transaction(transaction_id, version)] if transaction_id else [],
    )
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        try:
            _write_commit(
                table_uri, schema, files, parent_version, partition_by, replace, properties
            )
            return version
        except (DeltaError, OSError) as error:
            # A commit may land although its answer is lost, and even after it was given up.
            if _read_commit_id(table_uri, version) == commit_id:
                return version
            if (newest := _newest_version(table_uri)) != parent_version:
                raise _conflict_error(table_uri, newest) from None
            if attempt == COMMIT_ATTEMPTS:
                raise _refusal(table_uri, error) from error
            time.sleep(random.uniform(0, COMMIT_PAUSE_S * attempt))
    raise AssertionError("unreachable")


def _write_commit(
    table_uri: str,
    schema: pa.Schema,
    files: Sequence[WrittenFile],
    parent_version: int | None,
    partition_by: Sequence[str],
    replace: bool,
    properties: CommitProperties,
) -> None:
    """Makes one attempt to commit; `commit` explains the arguments."""
    adds = [
        AddAction(f.name, f.size, dict(f.partition), 0, True, json.dumps({"numRecords": f.rows}))
        for f in files
    ]
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
        return
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


def _read_commit_id(table_uri: str, version: int) -> str | None:
    """Returns which call of `commit` made a version; None if there is no such version."""
    file = _commit_file(table_uri, version)
    log = storage.read_bytes_if_exists(file)
    return None if log is None else str(find_info(read_actions(file, log)).get(COMMIT_ID_KEY))


def _conflict_error(table_uri: str, newest: int | None) -> CommitConflictError:
    return CommitConflictError(
        f"{table_uri}: another process made version {newest} in the meantime; "
        "start again to build on it"
    )


def _refusal(table_uri: str, error: DeltaError | OSError) -> CprecError:
    """Returns what to raise for a commit that did not land: storage may be away, or refuse it."""
    if isinstance(error, OSError):
        return PlatformFault(
            f"{table_uri}: the commit did not reach the table ({error}); nothing was changed: "
            "see whether the disk or the store is well, then start again"
        )
    return CorpusError(
        f"{table_uri}: the commit was refused ({error}); "
        "if another process writes here, let it end, then start again"
    )


def read_commits(table_uri: str, known_version: int = -1) -> tuple[Commit, ...]:
    """Reads every version of a table, oldest first; none if there is no table.

    Only files of the log that this process has not read yet are read.

    Args:
        table_uri: URI of the table.
        known_version: A version that the table is known to have.

    Raises:
        CorpusError: A file of the log is missing or damaged.
    """
    etags = _list_all_commits(table_uri, known_version)
    keys = {version: (table_uri, version, etag) for version, etag in sorted(etags.items())}
    cached = {
        version: entry
        for version, key in keys.items()
        if (entry := _COMMIT_CACHE.get(key)) is not None
    }
    missing = [version for version in keys if version not in cached]
    files = [_commit_file(table_uri, version) for version in missing]
    fresh = {
        version: parse_commit(table_uri, version, file, log)
        for version, file, log in zip(missing, files, storage.read_many(files), strict=True)
    }
    commits = tuple((fresh.get(version) or cached[version]) for version in keys)
    if len(_COMMIT_CACHE) + len(fresh) > _COMMIT_CACHE_SIZE:
        _COMMIT_CACHE.clear()
    _COMMIT_CACHE.update({keys[version]: commit for version, commit in fresh.items()})
    return commits


def _list_all_commits(table_uri: str, known_version: int) -> dict[int, str]:
    """Returns what `_list_commits` does; raises CorpusError if a version before another is gone."""
    etags = _list_commits(table_uri)
    versions = range(max([known_version, *etags]) + 1)
    if len(etags) < len(versions):
        # A listing is no snapshot: it may lack a commit that was made meanwhile, but not again.
        again = _list_commits(table_uri)
        if gone := [version for version in versions if version not in again]:
            raise CorpusError(
                f"{_commit_file(table_uri, gone[0])}: a file of the corpus's log is missing; "
                "restore it, or build the corpus again elsewhere"
            )
        etags = {version: again[version] for version in versions}
    return etags


def _commit_file(table_uri: str, version: int) -> str:
    return storage.join(table_uri, _LOG_FOLDER, f"{version:020d}.json")


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


def open_parquet(uri: str) -> pq.ParquetFile:
    """Opens a file of a table; page checksums are verified as it is read.

    Read it with `use_threads=False`: a thread of Arrow that is the last to hold the file, an object
    of Python, aborts the process if the interpreter ends meanwhile.
    """
    fs, path = storage.filesystem(uri)
    return pq.ParquetFile(fs.open(path, "rb"), page_checksum_verification=True)

"""Delta tables as cprec uses them: parquet files written first, by anyone; then their list committed in one transaction, by one process.

A file that no commit names does not exist for a reader, so a kill at any moment leaves nothing half-visible. Files are named by their content:
writing one again changes nothing. On S3 a commit is a conditional put; a store that ignores `If-None-Match` loses commits silently and must not
be used.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions

from cluster import storage
from cluster.errors import CorpusError

ROW_GROUP = 1024
"""Rows that are read together, at least."""

_METADATA = "cprec"
# Old versions stay readable for as long as a run may refer to them.
_CONFIGURATION = {"delta.enableExpiredLogCleanup": "false", "delta.logRetentionDuration": "interval 36500 days"}


@dataclass(frozen=True)
class FilePart:
    """A file of rows. path: full URI."""

    path: str
    rows: int


@dataclass(frozen=True)
class Written:
    """A file that is written but not committed. name: relative to the table's URI; size: bytes; partition: column to value."""

    name: str
    size: int
    rows: int
    partition: Mapping[str, str]


@dataclass(frozen=True)
class Added:
    """A file that a commit added."""

    part: FilePart
    partition: Mapping[str, str]


@dataclass(frozen=True)
class Commit:
    """One version of a table: what it added, files by name; and what its writer says about it."""

    version: int
    metadata: Mapping[str, Any]
    files: tuple[Added, ...]


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


def write_file(table_uri: str, stem: str, rows: pa.Table, partition: Mapping[str, str]) -> Written:
    """Write rows as one parquet file below a table, by the name <stem>-<digest of its content>.parquet. Every page carries a checksum."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=ROW_GROUP, compression="zstd", write_page_checksum=True)
    content = buffer.getvalue()
    name = f"{stem}-{storage.sha256(content)[:16]}.parquet"
    storage.write_bytes(storage.join(table_uri, name), content)
    return Written(name, len(content), rows.num_rows, partition)


def commit(
    table_uri: str,
    schema: pa.Schema,
    files: Sequence[Written],
    *,
    after: int | None,
    partition_by: Sequence[str] = (),
    replace: bool = False,
    metadata: Mapping[str, Any],
) -> int:
    """Add files to a table, or replace all it has, in one transaction; the table is created if it is to follow no version. Returns the new version.

    schema: of the rows and the partition columns. after: the version that this one was made for, None for a new table. metadata: plain data, kept
    with the commit.
    Raises CorpusError if another process committed in the meantime.
    """
    adds = [AddAction(f.name, f.size, dict(f.partition), 0, True, json.dumps({"numRecords": f.rows})) for f in files]
    properties = CommitProperties(custom_metadata={_METADATA: dict(metadata)}, max_commit_retries=0)
    table = _table(table_uri)
    newest = None if table is None else int(table.version())
    if newest != after:
        raise CorpusError(f"{table_uri}: another process made version {newest} in the meantime; start again to build on it")
    try:
        if table is None:
            create_table_with_add_actions(
                table_uri,
                Schema.from_arrow(schema),
                adds,
                partition_by=list(partition_by),
                configuration=_CONFIGURATION,
                storage_options=storage_options(table_uri),
                commit_properties=properties,
            )
        else:
            mode: Literal["append", "overwrite"] = "overwrite" if replace else "append"
            table.create_write_transaction([*adds], mode, Schema.from_arrow(schema), list(partition_by), commit_properties=properties)
    except DeltaError as error:
        raise CorpusError(f"{table_uri}: the commit was refused ({error}); if another process writes here, let it end, then start again") from None
    return 0 if after is None else after + 1


def commits(table_uri: str) -> tuple[Commit, ...]:
    """Every version of a table, oldest first; none if there is no table."""
    table = _table(table_uri)
    if table is None:
        return ()
    told = {int(entry["version"]): entry.get(_METADATA) for entry in table.history()}
    found: list[Commit] = []
    before: set[str] = set()
    for version in range(int(table.version()) + 1):
        files = {added.part.path: added for added in _files(table_uri, version)}
        if told.get(version) is None:
            raise CorpusError(f"{table_uri}: version {version} was not written by cprec; restore the table to the version before, or build another")
        found.append(Commit(version, told[version] or {}, tuple(files[path] for path in sorted(files.keys() - before))))
        before = set(files)
    return tuple(found)


def files_of(table_uri: str, version: int) -> tuple[FilePart, ...]:
    """The files of one version of a table, by name."""
    return tuple(sorted((added.part for added in _files(table_uri, version)), key=lambda part: part.path))


def open_parquet(path: str) -> pq.ParquetFile:
    """A file of a table, whose page checksums are verified as it is read."""
    fs, place = storage.filesystem(path)
    return pq.ParquetFile(fs.open(place, "rb"), page_checksum_verification=True)


def _table(table_uri: str) -> DeltaTable | None:
    try:
        return DeltaTable(table_uri, storage_options=storage_options(table_uri))
    except TableNotFoundError:
        return None


def _files(table_uri: str, version: int) -> list[Added]:
    # Opened at its version: DeltaTable.load_as_version waits for the network with the interpreter's lock held.
    table = DeltaTable(table_uri, version=version, storage_options=storage_options(table_uri))
    rows = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    prefix = "partition."
    return [
        Added(
            FilePart(storage.join(table_uri, row["path"]), int(row["num_records"])),
            {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)},
        )
        for row in rows
    ]

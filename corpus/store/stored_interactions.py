"""The interactions that a corpus was made of, after k-core, each with its split.

An append builds on them. They are parquet files in interactions/ beside the tables, in the order of
the users' hashes. Each version's files are listed in its commit, so they become visible with the
version or not at all. A reader only reads the row groups of the users that it asks for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from cluster.errors import CorpusError
from corpus.sampling import hashing
from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.schemas import STORED_INTERACTION_SCHEMA
from corpus.store import delta
from corpus.store.commits import DataFile
from corpus.store.tables import Corpus, translate_file_errors

INTERACTIONS = "interactions"
"""Name of the folder, and of the list of files in a commit's metadata."""

TARGET_FILE_ROWS = 1 << 20
"""Interactions of a file at most, on average."""


@dataclass(frozen=True)
class InteractionFile:
    """A file with the interactions of the users in one range of hashes.

    Its fields are the JSON object that lists it in a commit.

    Attributes:
        name: Path relative to interactions/.
        rows: Number of interactions.
        number: Index of the range.
        of: Number of equal ranges that the hashes are divided into.
    """

    name: str
    rows: int
    number: int
    of: int


def count_user_ranges(rows: int) -> int:
    """Returns how many ranges of hashes users are divided into, for a number of interactions.

    Each range has its own file of interactions, and its samples are built together. The result is
    a power of two, at least 1.
    """
    return 1 << max(0, -(-rows // TARGET_FILE_ROWS) - 1).bit_length()


def write_interactions(
    uri: str, range_index: int, num_ranges: int, rows: pa.Table
) -> InteractionFile:
    """Writes one file of new interactions: those of users whose ids' hashes are in one range.

    The file belongs to no version until a commit lists it.

    Args:
        uri: URI of the corpus.
        range_index: Index of the range.
        num_ranges: Number of equal ranges that the hashes are divided into.
        rows: The interactions: STORED_INTERACTION_SCHEMA, sorted by user hash.

    Returns:
        The entry with which a commit lists the file.
    """
    written = delta.write_file(
        storage.join(uri, INTERACTIONS), f"part-{range_index:05d}-of-{num_ranges:05d}", rows, {}
    )
    return InteractionFile(written.name, written.rows, range_index, num_ranges)


def to_metadata(files: Sequence[InteractionFile]) -> list[dict[str, Any]]:
    """Returns the list of files in the form in which a commit stores it."""
    return [asdict(file) for file in files]


def read_user_interactions(
    corpus: Corpus, user_ids: pl.Series, cache: dict[str, EncodedInteractions]
) -> EncodedInteractions:
    """Reads all stored interactions of some users.

    Args:
        corpus: Version of the corpus.
        user_ids: The users; ids may repeat.
        cache: What was read for the same users before, by file name. New files are added to it, so
            a call with a newer version reads only what is new.

    Raises:
        CorpusError: A version has no stored interactions, or a file is missing or damaged.
    """
    users = pl.DataFrame({"user_id": user_ids.unique()})
    hashes = np.unique(hashing.hash_strings(users["user_id"]))
    parts = [
        EncodedInteractions.from_frame(
            _add_version(pl.DataFrame(STORED_INTERACTION_SCHEMA.empty_table()), 0)
        )
    ]
    for commit in corpus.commits:
        for file in _files_of_commit(corpus, commit.version, commit.metadata):
            if file.name not in cache:
                uri = storage.join(corpus.uri, INTERACTIONS, file.name)
                rows = pl.concat(
                    [
                        pl.DataFrame(STORED_INTERACTION_SCHEMA.empty_table()),
                        *_read_rows(uri, _hashes_in_range(file, hashes)),
                    ]
                )
                # Two users may share a hash, so rows are selected by id as well.
                cache[file.name] = EncodedInteractions.from_frame(
                    _add_version(rows.join(users, on="user_id", how="semi"), commit.version)
                )
            parts.append(cache[file.name])
    return EncodedInteractions.concat(parts)


def count_user_interactions(corpus: Corpus, user_ids: pl.Series) -> int:
    """Counts the stored interactions of some users, by reading only the hashes of user ids.

    It is the number that `read_user_interactions` returns, or more: another user whose id has the
    same hash is counted too.

    Args:
        corpus: Version of the corpus.
        user_ids: The users; an id that repeats counts once.

    Raises:
        CorpusError: A version has no stored interactions, or a file is missing or damaged.
    """
    hashes = np.unique(hashing.hash_strings(user_ids))
    count = 0
    for commit in corpus.commits:
        for file in _files_of_commit(corpus, commit.version, commit.metadata):
            file_hashes = _hashes_in_range(file, hashes)
            if not file_hashes.size:
                continue
            uri = storage.join(corpus.uri, INTERACTIONS, file.name)
            with translate_file_errors(uri):
                parquet = delta.open_parquet(uri)
                groups = _row_groups_overlapping(parquet, file_hashes)
                count += int(np.count_nonzero(_user_mask(parquet, groups, file_hashes)))
    return count


def list_files(corpus: Corpus) -> list[DataFile]:
    """Lists the files of stored interactions (STORED_INTERACTION_SCHEMA) of all versions.

    Raises:
        CorpusError: A version has no stored interactions.
    """
    return [
        DataFile(storage.join(corpus.uri, INTERACTIONS, file.name), file.rows)
        for commit in corpus.commits
        for file in _files_of_commit(corpus, commit.version, commit.metadata)
    ]


def _files_of_commit(
    corpus: Corpus, version: int, metadata: Mapping[str, Any]
) -> list[InteractionFile]:
    """Returns the files that a commit lists; raises CorpusError if it has no list."""
    if INTERACTIONS not in metadata:
        raise CorpusError(
            f"{corpus.uri}: version {version} has no stored interactions, which an append and "
            "--inspect need; build the corpus again elsewhere"
        )
    return [InteractionFile(**entry) for entry in metadata[INTERACTIONS]]


def _add_version(rows: pl.DataFrame, version: int) -> pl.DataFrame:
    return rows.with_columns(version=pl.lit(version, pl.Int32))


def _hashes_in_range(file: InteractionFile, hashes: hashing.Hashes) -> NDArray[np.int64]:
    """Returns the hashes that a file's range includes, as int64 and ascending like its rows."""
    in_range = hashing.hash_range_indices(hashes, file.of) == file.number
    return np.sort(hashes[in_range].view(np.int64))


def _read_rows(uri: str, hashes: NDArray[np.int64]) -> Iterator[pl.DataFrame]:
    """Yields the rows of a file whose user has one of the hashes, which ascend.

    Whole rows are read only from row groups that contain one of the hashes. Of the others at most
    the column of hashes is read.
    """
    if not hashes.size:
        return
    with translate_file_errors(uri):
        file = delta.open_parquet(uri)
        groups = _row_groups_containing(file, _row_groups_overlapping(file, hashes), hashes)
        rows = pl.DataFrame(file.read_row_groups(groups, use_threads=False)) if groups else None
    if rows is not None:
        yield rows.filter(pl.col("user_hash").is_in(pl.Series(hashes).implode()))


def _row_groups_containing(
    file: pq.ParquetFile, groups: list[int], hashes: NDArray[np.int64]
) -> list[int]:
    """Returns the row groups, among those given, that contain one of the hashes."""
    if not groups:
        return []
    mask = _user_mask(file, groups, hashes)
    starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in groups[:-1])])
    contains = np.logical_or.reduceat(mask, starts)
    return [group for group, found in zip(groups, contains, strict=True) if found]


def _user_mask(
    file: pq.ParquetFile, groups: list[int], hashes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tells for each row of some row groups whether its user has one of the hashes [n]."""
    user_hash = file.read_row_groups(groups, ["user_hash"], use_threads=False)["user_hash"]
    return np.isin(user_hash.to_numpy(), hashes)


def _row_groups_overlapping(file: pq.ParquetFile, hashes: NDArray[np.int64]) -> list[int]:
    """Returns the row groups between whose bounds one of the hashes is, which ascend."""
    return [
        group
        for group in range(file.metadata.num_row_groups)
        if _overlaps(file.metadata.row_group(group), hashes)
    ]


def _overlaps(group: pq.RowGroupMetaData, hashes: NDArray[np.int64]) -> bool:
    bounds = group.column(0).statistics
    return bool(
        np.searchsorted(hashes, bounds.min) < np.searchsorted(hashes, bounds.max, side="right")
    )

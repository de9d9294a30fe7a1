"""The interactions that a corpus was made of, after k-core, each with its split: what a later version builds on.

They lie in interactions/ beside the tables, as parquet files in the order of the users' hashes, and are listed in the commit that they came with:
so they become visible with their version or not at all. A reader goes to the row groups of the users that it asks for.
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
from corpus.sampling.samples import STORED_INTERACTION_SCHEMA
from corpus.store import delta
from corpus.store.delta import DataFile, WrittenFile
from corpus.store.tables import Corpus, translate_file_errors

INTERACTIONS = "interactions"

TARGET_FILE_ROWS = 1 << 20
"""Interactions of a file, at most, on average."""


@dataclass(frozen=True)
class InteractionFile:
    """A file of kept interactions: those of the users whose hashes lie in the number-th of `of` equal ranges. name: relative to interactions/."""

    name: str
    rows: int
    number: int
    of: int


def user_range_count(rows: int) -> int:
    """Ranges of users into which interactions are cut, for their files and for the making of samples: a power of two, at least 1."""
    return 1 << max(0, -(-rows // TARGET_FILE_ROWS) - 1).bit_length()


def write_interactions(
    uri: str, range_index: int, num_ranges: int, rows: pa.Table
) -> InteractionFile:
    """Write the kept interactions of one range of users, a table of KEPT in its order."""
    written: WrittenFile = delta.write_file(
        storage.join(uri, INTERACTIONS), f"part-{range_index:05d}-of-{num_ranges:05d}", rows, {}
    )
    return InteractionFile(written.name, written.rows, range_index, num_ranges)


def to_metadata(files: Sequence[InteractionFile]) -> list[dict[str, Any]]:
    """The list as it is kept with a commit."""
    return [asdict(file) for file in files]


def read_user_interactions(
    corpus: Corpus, user_ids: pl.Series, cache: dict[str, EncodedInteractions]
) -> EncodedInteractions:
    """All kept interactions of some users.

    read: what was read of each file for these users before, by its name; more is added, so that asking again on a newer version reads what is new.
    Raises CorpusError for a corpus that kept none, or a file that is missing or damaged.
    """
    names = pl.DataFrame({"user_id": user_ids.unique()})
    hashes = np.unique(hashing.hash_strings(names["user_id"]))
    found = [
        EncodedInteractions.from_frame(
            _add_version(pl.DataFrame(STORED_INTERACTION_SCHEMA.empty_table()), 0)
        )
    ]
    for commit in corpus.commits:
        for file in _files_of_commit(corpus, commit.version, commit.metadata):
            if file.name not in cache:
                path = storage.join(corpus.uri, INTERACTIONS, file.name)
                rows = pl.concat(
                    [
                        pl.DataFrame(STORED_INTERACTION_SCHEMA.empty_table()),
                        *_read_rows(path, _hashes_in_range(file, hashes)),
                    ]
                )
                cache[file.name] = EncodedInteractions.from_frame(
                    _add_version(rows.join(names, on="user_id", how="semi"), commit.version)
                )
            found.append(cache[file.name])
    return EncodedInteractions.concat(found)


def count_user_interactions(corpus: Corpus, user_ids: pl.Series) -> int:
    """How many interactions `of_users` gives, found by reading hashes only. Raises as it does."""
    hashes, count = np.unique(hashing.hash_strings(user_ids)), 0
    for commit in corpus.commits:
        for file in _files_of_commit(corpus, commit.version, commit.metadata):
            path, wanted = (
                storage.join(corpus.uri, INTERACTIONS, file.name),
                _hashes_in_range(file, hashes),
            )
            if wanted.size:
                with translate_file_errors(path):
                    opened = delta.open_parquet(path)
                    count += int(
                        np.count_nonzero(
                            _user_mask(opened, _row_groups_overlapping(opened, wanted), wanted)
                        )
                    )
    return count


def list_files(corpus: Corpus) -> list[DataFile]:
    """The files of all kept interactions of a corpus, each with the columns of KEPT."""
    kept = (
        file
        for commit in corpus.commits
        for file in _files_of_commit(corpus, commit.version, commit.metadata)
    )
    return [DataFile(storage.join(corpus.uri, INTERACTIONS, file.name), file.rows) for file in kept]


def _files_of_commit(
    corpus: Corpus, version: int, metadata: Mapping[str, Any]
) -> list[InteractionFile]:
    if INTERACTIONS not in metadata:
        raise CorpusError(
            f"{corpus.uri}: version {version} kept no interactions to build on; build the corpus anew, elsewhere"
        )
    return [InteractionFile(**entry) for entry in metadata[INTERACTIONS]]


def _add_version(rows: pl.DataFrame, version: int) -> pl.DataFrame:
    return rows.with_columns(version=pl.lit(version, pl.Int32))


def _hashes_in_range(file: InteractionFile, hashes: hashing.Hashes) -> NDArray[np.int64]:
    """Those of some hashes that a file can hold, ascending as it holds them."""
    return np.sort(
        hashes[hashing.hash_range_indices(hashes, file.of) == file.number].view(np.int64)
    )


def _read_rows(uri: str, hashes: NDArray[np.int64]) -> Iterator[pl.DataFrame]:
    """The rows of a file whose user's hash is among those given, which ascend. Of row groups that hold none of these at most the hashes are read."""
    if not hashes.size:
        return
    with translate_file_errors(uri):
        file = delta.open_parquet(uri)
        groups = _row_groups_containing(file, _row_groups_overlapping(file, hashes), hashes)
        rows = pl.DataFrame(file.read_row_groups(groups)) if groups else None
    if rows is not None:
        yield rows.filter(pl.col("user_hash").is_in(pl.Series(hashes).implode()))


def _row_groups_containing(
    file: pq.ParquetFile, groups: list[int], hashes: NDArray[np.int64]
) -> list[int]:
    """Those of some row groups that hold one of the hashes."""
    if not groups:
        return []
    wanted = _user_mask(file, groups, hashes)
    first = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in groups[:-1])])
    return [
        group
        for group, holds in zip(groups, np.logical_or.reduceat(wanted, first), strict=True)
        if holds
    ]


def _user_mask(
    file: pq.ParquetFile, groups: list[int], hashes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Of each row of some row groups whether its user's hash is among those given [n]."""
    return np.isin(
        file.read_row_groups(groups, columns=["user_hash"])["user_hash"].to_numpy(), hashes
    )


def _row_groups_overlapping(file: pq.ParquetFile, hashes: NDArray[np.int64]) -> list[int]:
    """The row groups whose range of hashes has one of those given, which ascend."""
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

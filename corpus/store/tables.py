"""The corpus: two append-only Delta tables, `samples` and `items`; a commit to `samples` is a corpus version. It alone knows what the corpus holds.

`samples` is partitioned by (source, split). Within a version the rows of a partition are in the order of their unsigned sample id, over files by
name and rows within: ids are hashes, so a sequential read is a uniformly shuffled one (of whole users under `data.users_together`). What a version is
known by (its statistics, its fingerprint, its version of `items`) is in its commit. Why it is so: docs/decisions/003-corpus-table.md.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from cluster.errors import CorpusError, PlatformFault
from corpus.sampling import replay_text, samples
from corpus.sampling.hashing import hash_range_indices
from corpus.sampling.source import Source, SourceKind
from corpus.store import delta
from corpus.store.delta import DataFile

SAMPLES, ITEMS, STATISTICS_FILE = "samples", "items", "statistics.json"
ITEMS_SCHEMA = pa.schema(
    [
        ("item_index", pa.int64()),
        ("domain", pa.string()),
        ("item_id", pa.string()),
        ("title", pa.string()),
    ]
)
PARTITION_COLUMNS = ("source", "split")
PARTITIONED_SAMPLE_SCHEMA = pa.schema(
    [*samples.SAMPLE_SCHEMA, *((name, pa.string()) for name in PARTITION_COLUMNS)]
)
SAMPLES_TABLE_SCHEMA = pa.schema(
    [*PARTITIONED_SAMPLE_SCHEMA, replay_text.TEXT_WINDOW_SCHEMA.field("text")]
)
"""What Delta is told. A file has the columns that its rows need: those of samples, or of windows of text; a reader finds null for the others."""

TARGET_FILE_ROWS = 1 << 18
"""Rows of a file of samples, at most, on average."""


@dataclass(frozen=True)
class Stream:
    """The rows that one corpus version added to one source in one split, in canonical order: files by name, rows within."""

    source: Source
    version: int
    files: tuple[DataFile, ...]
    split: str = "train"

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Corpus:
    """One version of a corpus, as plain data that may be sent between processes."""

    uri: str
    version: int
    commits: tuple[delta.Commit, ...]

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> "Corpus":
        """The corpus at a URI, in its newest version or the one asked for.

        Raises CorpusError when there is no corpus, or no such version.
        """
        uri = storage.absolute_uri(uri)
        commits = delta.read_commits(storage.join(uri, SAMPLES))
        if not commits:
            raise CorpusError(
                f"{uri}: no corpus here; build one with jobs/build_corpus.py --corpus {uri}, or correct the key corpus"
            )
        newest = commits[-1].version
        if version is not None and not 0 <= version <= newest:
            raise CorpusError(
                f"{uri}: no version {version}, the corpus has versions 0..{newest}; correct the key corpus_version"
            )
        chosen = newest if version is None else version
        return cls(uri, chosen, commits[: chosen + 1])

    def streams(self, split: str = "train") -> tuple[Stream, ...]:
        """The streams of every source in one split, sorted by (version, source). A source without rows in the split has none."""
        found = []
        for commit in self.commits:
            files: dict[str, list[DataFile]] = {}
            for added in commit.added:
                if added.partition["split"] == split:
                    files.setdefault(added.partition["source"], []).append(added.file)
            found += [
                Stream(Source.parse(source), commit.version, tuple(parts), split)
                for source, parts in sorted(files.items())
            ]
        return tuple(found)

    def find_domain_source(self, domain: str, split: str) -> Source:
        """Finds the source of a domain's own samples, whether it is held out or not.

        Raises:
            CorpusError: The domain has no samples in this split; names the domains that have.
        """
        kinds = (SourceKind.DOWNSTREAM, SourceKind.DOMAIN)
        sources = [stream.source for stream in self.streams(split) if stream.source.kind in kinds]
        found = next((source for source in sources if source.name == domain), None)
        if found is None:
            known = ", ".join(sorted({source.name for source in sources})) or "none"
            raise CorpusError(
                f"{self.uri}, version {self.version}: domain {domain} has no {split} samples; "
                f"domains that have some: {known}"
            )
        return found

    def read_samples(self, source: str, split: str) -> pa.Table:
        """All rows of a source in a split, of every version, in canonical order. No row if the source has none in this split.

        Raises CorpusError naming the sources there are.
        """
        known = sorted(
            {added.partition["source"] for commit in self.commits for added in commit.added}
        )
        if source not in known:
            raise CorpusError(
                f"{self.uri}: version {self.version} has no source {source}; it has {', '.join(known)}"
            )
        streams = [stream for stream in self.streams(split) if stream.source == source]
        return pa.concat_tables(
            [read_rows(stream, 0, stream.rows) for stream in streams]
            or [PARTITIONED_SAMPLE_SCHEMA.empty_table()]
        )

    def read_items(self) -> pa.Table:
        """item_index, domain, item_id, title of every item, in the order of item_index (row i is item i)."""
        version = int(self.commits[-1].metadata["items_version"])
        files = delta.live_files(delta.read_commits(storage.join(self.uri, ITEMS))[: version + 1])
        return pa.concat_tables(
            [_read_file_rows(part.uri, 0, part.rows) for part in files]
        ).sort_by("item_index")

    def read_titles(self) -> list[str]:
        """Cleaned title of every item; position = item_index."""
        return list(self.read_items()["title"].to_pylist())

    def statistics(self) -> dict[str, Any]:
        """The object of this version in statistics.json."""
        return {"version": self.version, **self.commits[-1].metadata["statistics"]}


def read_rows(stream: Stream, start: int, stop: int) -> pa.Table:
    """Rows start .. stop - 1 of a stream, with its source and split as columns; reads only the row groups that they are in. Windows of text have the
    column `text` too, and null in the others.

    Raises CorpusError naming a file that is missing or fails its checksums; ValueError if the stream has no such rows.
    """
    if not 0 <= start <= stop <= stream.rows:
        raise ValueError(f"rows {start}..{stop} of a stream of {stream.rows}")
    found, first = [samples.SAMPLE_SCHEMA.empty_table()], 0
    for file in stream.files:
        low, high = max(start - first, 0), min(stop - first, file.rows)
        if low < high:
            found.append(_read_file_rows(file.uri, low, high))
        first += file.rows
    rows = pa.concat_tables(found, promote_options="default")
    for name, value in zip(PARTITION_COLUMNS, (stream.source, stream.split), strict=True):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value), rows.num_rows))
    return rows


def _read_file_rows(uri: str, start: int, stop: int) -> pa.Table:
    """Rows start .. stop - 1 of one file."""
    with translate_file_errors(uri):
        file, ends = _open_cached(uri)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        table = file.read_row_groups(range(first, last + 1))
        before = int(ends[first - 1]) if first else 0
    return table.slice(start - before, stop - start)


# Files never change, so one that is open stays good; a reader goes through few of them at a time.
@lru_cache(maxsize=8)
def _open_cached(uri: str) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    file = delta.open_parquet(uri)
    groups = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
    return file, np.cumsum(np.fromiter(groups, np.int64))


@contextmanager
def translate_file_errors(uri: str) -> Iterator[None]:
    """What parquet says of a damaged file becomes an error that names the file; what the network says passes, for a retry."""
    try:
        yield
    except FileNotFoundError:
        raise CorpusError(
            f"{uri}: a file of the corpus is missing; restore it, or build the corpus again elsewhere"
        ) from None
    except (pa.ArrowException, OSError) as error:
        if storage.is_storage_error(error):
            raise
        raise CorpusError(
            f"{uri}: a file of the corpus is damaged ({error}); restore it, or build the corpus again elsewhere"
        ) from None


def publish_statistics(corpus: Corpus) -> None:
    """Write statistics.json: one object per version, newest last. It only repeats what the commits say, so it may be written again at any time."""
    versions = [
        Corpus(corpus.uri, commit.version, corpus.commits[: commit.version + 1]).statistics()
        for commit in corpus.commits
    ]
    storage.write_text(
        storage.join(corpus.uri, STATISTICS_FILE), json.dumps(versions, indent=2) + "\n"
    )


def file_count(max_rows: int) -> int:
    """Files over which the samples of one (source, split) are spread: a power of two, at least 1."""
    return 1 << max(0, -(-max_rows // TARGET_FILE_ROWS) - 1).bit_length()


def file_numbers(sample_ids: NDArray[np.int64], num_files: int) -> NDArray[np.int64]:
    """The file of each sample [n]: equal ranges of unsigned ids, so the order of files is the order of ids. Ids are hashes, so files are even."""
    return hash_range_indices(sample_ids.view(np.uint64), num_files)


@dataclass(frozen=True)
class FileKey:
    """Where samples go: the number-th file of one (source, split)."""

    source: str
    split: str
    number: int


def split_by_file(
    tables: Mapping[tuple[str, str], pa.Table], max_counts: Mapping[tuple[str, str], int]
) -> Iterator[tuple[FileKey, pa.Table]]:
    """Cut samples, in the order of their unsigned ids, by the files that they belong in.

    at_most: samples that each (source, split) can have, over the whole version.
    """
    for (source, split), rows in sorted(tables.items()):
        if not rows.num_rows:
            continue
        numbers = file_numbers(rows["sample_id"].to_numpy(), file_count(max_counts[source, split]))
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, stop in zip(first, [*first[1:], rows.num_rows], strict=True):
            yield FileKey(source, split, int(numbers[start])), rows.slice(start, stop - start)


def write_samples(uri: str, key: FileKey, tables: Sequence[pa.Table]) -> delta.WrittenFile:
    """Write one file of samples, in the order of their ids; the parts come in any order.

    Raises PlatformFault if two samples have one id.
    """
    rows = pa.concat_tables(tables).combine_chunks()
    ids = rows["sample_id"].to_numpy().view(np.uint64)
    order = np.argsort(ids, kind="stable")  # quick where few ordered parts are to be merged
    if np.any(ids[order][1:] == ids[order][:-1]):
        raise PlatformFault(f"{key}: two samples have one id; the identity of samples is broken")
    partition = dict(zip(PARTITION_COLUMNS, (key.source, key.split), strict=True))
    return delta.write_file(
        storage.join(uri, SAMPLES),
        f"{key.source}/{key.split}/part-{key.number:05d}",
        rows.take(order),
        partition,
    )

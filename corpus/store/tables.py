"""The tables of a corpus, and how versions of it are opened, read and written.

A corpus is two append-only Delta tables, `samples` and `items`; a commit to `samples` is a corpus
version. `samples` is partitioned by (source, split). Within a version, the rows of a partition are
sorted by their unsigned sample id: first files by name, then rows within a file. Ids are hashes, so
a sequential read is a uniformly shuffled one (of whole users under `data.users_together`). The
commit of a version has its statistics, its fingerprint and its version of `items`. The reasons are
in docs/decisions/003-corpus-table.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from cluster.errors import CorpusError, PlatformFault
from cluster.storage_errors import is_storage_error
from corpus.sampling import replay_text, schemas
from corpus.sampling.hashing import hash_range_indices
from corpus.sampling.source import Source, SourceKind
from corpus.settings import UNRECORDED_TEMPLATE, TemplateName
from corpus.store import delta
from corpus.store.commits import Commit, DataFile
from corpus.store.statistics import VersionStatistics, require_all_samples

SAMPLES = "samples"
ITEMS = "items"

ITEMS_SCHEMA = pa.schema(
    [
        ("item_index", pa.int64()),
        ("domain", pa.string()),
        ("item_id", pa.string()),
        ("title", pa.string()),
    ]
)
"""Columns of the table `items`."""

PARTITION_COLUMNS = ("source", "split")
"""Columns that `samples` is partitioned by; they are in paths, not in files."""

PARTITIONED_SAMPLE_SCHEMA = pa.schema(
    [*schemas.SAMPLE_SCHEMA, *((name, pa.string()) for name in PARTITION_COLUMNS)]
)
"""Columns of a sample, with its source and split."""

SAMPLES_TABLE_SCHEMA = pa.schema(
    [*PARTITIONED_SAMPLE_SCHEMA, replay_text.TEXT_WINDOW_SCHEMA.field("text")]
)
"""Columns of the table `samples`, as declared to Delta.

A file has only the columns of its rows, which are samples or windows of text; the others read as
null.
"""

TARGET_FILE_ROWS = 1 << 18
"""Rows of a file of samples at most, on average."""


@dataclass(frozen=True)
class Stream:
    """The rows that one corpus version added to a source in one split.

    Attributes:
        source: Source of the rows.
        version: Corpus version that added them.
        files: Their files, sorted by name; rows are read in this order.
        split: Split of the rows.
    """

    source: Source
    version: int
    files: tuple[DataFile, ...]
    split: str = "train"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Corpus:
    """One version of a corpus, as plain data that processes can send to each other.

    Attributes:
        uri: Absolute URI of the corpus.
        version: Version of the corpus.
        commits: Commits to `samples` up to this version; commits[i] made version i.
    """

    uri: str
    version: int
    commits: tuple[Commit, ...]

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> "Corpus":
        """Opens a version of the corpus at a URI; the newest if no version is given.

        Raises:
            CorpusError: There is no corpus, or no such version.
        """
        uri = storage.absolute_uri(uri)
        commits = delta.read_commits(storage.join(uri, SAMPLES))
        if not commits:
            raise CorpusError(
                f"{uri}: no corpus here; build one with jobs/build_corpus.py --corpus {uri}, "
                "or correct the key corpus"
            )
        newest = commits[-1].version
        if version is not None and not 0 <= version <= newest:
            raise CorpusError(
                f"{uri}: no version {version}, the corpus has versions 0..{newest}; "
                "correct the key corpus_version"
            )
        chosen = newest if version is None else version
        require_all_samples(storage.join(uri, SAMPLES), commits[: chosen + 1])
        return cls(uri, chosen, commits[: chosen + 1])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the first version, which identifies the corpus."""
        return str(self.commits[0].metadata["fingerprint"])

    @property
    def prompt_template(self) -> TemplateName:
        """Template of the prompts of models that are trained on this corpus."""
        rules = self.commits[0].metadata.get("rules") or {}
        name: TemplateName = rules.get("data.prompt_template", UNRECORDED_TEMPLATE)
        return name

    def streams(self, split: str = "train") -> tuple[Stream, ...]:
        """Returns the streams of every source in one split, sorted by (version, source).

        A version that added no rows to a source in this split has no stream there.
        """
        streams = []
        for commit in self.commits:
            files_by_source: dict[str, list[DataFile]] = {}
            for added in commit.added:
                if added.partition["split"] == split:
                    files_by_source.setdefault(added.partition["source"], []).append(added.file)
            streams += [
                Stream(Source.parse(source), commit.version, tuple(files), split)
                for source, files in sorted(files_by_source.items())
            ]
        return tuple(streams)

    def streams_by_key(self) -> dict[tuple[str, int], Stream]:
        """Returns the training streams by source and corpus version."""
        return {(stream.source, stream.version): stream for stream in self.streams()}

    def find_domain_source(self, domain: str, split: str) -> Source:
        """Finds the source of a domain's own samples, whether it is held out or not.

        Raises:
            CorpusError: The domain has no samples in this split; names the domains that have.
        """
        kinds = (SourceKind.DOWNSTREAM, SourceKind.DOMAIN)
        sources = [stream.source for stream in self.streams(split) if stream.source.kind in kinds]
        source = next((source for source in sources if source.name == domain), None)
        if source is None:
            domains = ", ".join(sorted({source.name for source in sources})) or "none"
            raise CorpusError(
                f"{self.uri}, version {self.version}: domain {domain} has no {split} samples; "
                f"domains that have some: {domains}"
            )
        return source

    def read_samples(self, source: str, split: str) -> pa.Table:
        """Reads all rows of a source in one split, version by version in the order of streams.

        Returns no row if the source has none in this split.

        Raises:
            CorpusError: There is no such source; names the sources of the corpus.
        """
        known = sorted(
            {added.partition["source"] for commit in self.commits for added in commit.added}
        )
        if source not in known:
            raise CorpusError(
                f"{self.uri}: version {self.version} has no source {source}; "
                f"it has {', '.join(known)}"
            )
        streams = [stream for stream in self.streams(split) if stream.source == source]
        return pa.concat_tables(
            [read_rows(stream, 0, stream.rows) for stream in streams]
            or [PARTITIONED_SAMPLE_SCHEMA.empty_table()]
        )

    def item_files(self) -> tuple[DataFile, ...]:
        """Returns the files of the table `items`, as of this version.

        Raises:
            CorpusError: The table's log lacks a file, or what one of them named.
        """
        version = int(self.commits[-1].metadata["items_version"])
        commits = delta.read_commits(storage.join(self.uri, ITEMS), version)[: version + 1]
        files = delta.live_files(commits)
        if sum(file.rows for file in files) != commits[-1].metadata["items"]:
            raise self._lost_items_error()
        return files

    def read_items(self) -> pa.Table:
        """Reads all items (ITEMS_SCHEMA); row i is item i.

        Raises:
            CorpusError: A file is missing or damaged, or the items are not numbered without gaps.
        """
        tables = [_read_file_rows(file.uri, 0, file.rows) for file in self.item_files()]
        items = pa.concat_tables(tables).sort_by("item_index")
        if not np.array_equal(items["item_index"], np.arange(items.num_rows)):
            raise self._lost_items_error()
        return items

    def _lost_items_error(self) -> CorpusError:
        return CorpusError(
            f"{storage.join(self.uri, ITEMS)}: items are missing or there twice, so titles "
            "would be those of others; restore the table, or build the corpus again elsewhere"
        )

    def read_titles(self) -> list[str]:
        """Reads the cleaned titles of all items; the position of a title is its item index."""
        return list(self.read_items()["title"].to_pylist())

    def statistics(self) -> VersionStatistics:
        """Returns the statistics of this version."""
        statistics: VersionStatistics = self.commits[-1].metadata["statistics"]
        return {"version": self.version, **statistics}


def read_rows(stream: Stream, start: int, stop: int) -> pa.Table:
    """Reads rows start .. stop - 1 of a stream; only row groups that have such rows are read.

    Args:
        stream: Stream to read.
        start: First row.
        stop: One past the last row.

    Returns:
        Rows as PARTITIONED_SAMPLE_SCHEMA. Windows of text also have the column `text`, and null in
        the other columns.

    Raises:
        CorpusError: A file is missing or fails its checksums.
        ValueError: The stream has no such rows.
    """
    if not 0 <= start <= stop <= stream.rows:
        raise ValueError(f"rows {start}..{stop} of a stream of {stream.rows}")
    tables = [schemas.SAMPLE_SCHEMA.empty_table()]
    file_start = 0
    for file in stream.files:
        first = max(start - file_start, 0)
        end = min(stop - file_start, file.rows)
        if first < end:
            tables.append(_read_file_rows(file.uri, first, end))
        file_start += file.rows
    rows = pa.concat_tables(tables, promote_options="default")
    for name, value in zip(PARTITION_COLUMNS, (stream.source, stream.split), strict=True):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value), rows.num_rows))
    return rows


def newest_timestamp(stream: Stream) -> int:
    """Returns the time of the newest target of a stream, in Unix seconds.

    Only the footers of its files are read.

    Raises:
        CorpusError: A file is missing or damaged.
    """
    newest = 0
    for data_file in stream.files:
        with translate_file_errors(data_file.uri):
            metadata = _open_cached(data_file.uri)[0].metadata
        column = metadata.schema.names.index("timestamp")
        for group in range(metadata.num_row_groups):
            newest = max(newest, metadata.row_group(group).column(column).statistics.max)
    return newest


def _read_file_rows(uri: str, start: int, stop: int) -> pa.Table:
    """Reads rows start .. stop - 1 of one file."""
    with translate_file_errors(uri):
        file, group_ends = _open_cached(uri)
        first, last = np.searchsorted(group_ends, [start, stop - 1], side="right")
        table = file.read_row_groups(range(first, last + 1), use_threads=False)
        table_start = int(group_ends[first - 1]) if first else 0
    return table.slice(start - table_start, stop - start)


# An open file never goes stale, because files never change. A reader uses few of them at a time.
@lru_cache(maxsize=8)
def _open_cached(uri: str) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    """Opens a file; returns it with the row after the last one of each row group."""
    file = delta.open_parquet(uri)
    group_rows = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
    return file, np.cumsum(np.fromiter(group_rows, np.int64))


@contextmanager
def translate_file_errors(uri: str) -> Iterator[None]:
    """Turns errors about a missing or damaged file of the corpus into errors that name it.

    Errors of the disk, the store or the network pass unchanged, so that callers can retry.

    Raises:
        CorpusError: The file is missing or damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise CorpusError(
            f"{uri}: a file of the corpus is missing; "
            "restore it, or build the corpus again elsewhere"
        ) from None
    except (pa.ArrowException, OSError) as error:
        if is_storage_error(error):
            raise
        raise CorpusError(
            f"{uri}: a file of the corpus is damaged ({error}); "
            "restore it, or build the corpus again elsewhere"
        ) from None


def count_files(max_rows: int) -> int:
    """Returns how many files the samples of one (source, split) are divided into.

    The number is a power of two, at least 1. It follows from the most samples there can be.
    """
    return 1 << max(0, -(-max_rows // TARGET_FILE_ROWS) - 1).bit_length()


def file_numbers(sample_ids: NDArray[np.int64], num_files: int) -> NDArray[np.int64]:
    """Returns the number of the file that each sample belongs in [n].

    A file is a range of unsigned ids. So the order of files is the order of ids, and files get
    equally many samples, because ids are hashes.
    """
    return hash_range_indices(sample_ids.view(np.uint64), num_files)


@dataclass(frozen=True)
class FileKey:
    """Identifies a file of samples within a version: its source, its split and its number there."""

    source: str
    split: str
    number: int


def split_by_file(
    tables: Mapping[tuple[str, str], pa.Table], max_counts: Mapping[tuple[str, str], int]
) -> Iterator[tuple[FileKey, pa.Table]]:
    """Splits tables of samples by the files that the rows belong in.

    Args:
        tables: Samples by (source, split), sorted by their unsigned ids.
        max_counts: Samples that each (source, split) can have, over the whole version.
    """
    for (source, split), rows in sorted(tables.items()):
        if not rows.num_rows:
            continue
        numbers = file_numbers(rows["sample_id"].to_numpy(), count_files(max_counts[source, split]))
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], rows.num_rows], strict=True):
            yield FileKey(source, split, int(numbers[start])), rows.slice(start, stop - start)


def write_samples(uri: str, key: FileKey, tables: Sequence[pa.Table]) -> delta.WrittenFile:
    """Writes one file of samples, sorted by their unsigned ids.

    Args:
        uri: URI of the corpus.
        key: Identifies the file.
        tables: Parts of the file, in any order.

    Raises:
        PlatformFault: Two samples have the same id.
    """
    rows = pa.concat_tables(tables).combine_chunks()
    ids = rows["sample_id"].to_numpy().view(np.uint64)
    order = np.argsort(ids, kind="stable")  # fast where a few sorted parts are merged
    if np.any(ids[order][1:] == ids[order][:-1]):
        raise PlatformFault(f"{key}: two samples have the same id; sample ids must be unique")
    partition = dict(zip(PARTITION_COLUMNS, (key.source, key.split), strict=True))
    return delta.write_file(
        storage.join(uri, SAMPLES),
        f"{key.source}/{key.split}/part-{key.number:05d}",
        rows.take(order),
        partition,
    )

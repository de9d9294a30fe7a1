"""Reads all rows of a corpus once, to check it for leakage and to describe what it holds.

Rows are first written to the local disk, partitioned by users, ids or items. Then one partition at
a time is counted, and the counts are added up. So memory grows with the number of items; beyond
that it has one partition and the location of each piece.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from corpus.inspect import leakage
from corpus.inspect.distributions import Distributions, InteractionCounts
from corpus.inspect.injections import TitlesWithInjection, find_titles_with_injections
from corpus.sampling.sequences import IntArray
from corpus.sampling.source import SPLITS, TEST, TRAIN, VALIDATION, Source, SourceKind
from corpus.store import catalogue, delta, stored_interactions
from corpus.store.commits import DataFile
from corpus.store.scratch import (
    THREADS,
    ColumnTypes,
    HashPartitions,
    ScratchFile,
    open_scratch_file,
)
from corpus.store.tables import Corpus, Stream, translate_file_errors

# Columns that are written to the local disk; rows are partitioned by the first one. split is an
# index into SPLITS, item the index of the target.
_INTERACTION_COLUMNS: ColumnTypes = {
    "user_id": pl.String,
    "domain": pl.String,
    "item_index": pl.Int64,
    "timestamp": pl.Int64,
    "split": pl.Int8,
}
_SAMPLE_COLUMNS: ColumnTypes = {
    "user_id": pl.String,
    "split": pl.Int8,
    "item": pl.Int64,
    "timestamp": pl.Int64,
    "history": pl.List(pl.Int64),
}
_ID_COLUMNS: ColumnTypes = {"sample_id": pl.Int64, "split": pl.Int8}
_TARGET_COLUMNS: ColumnTypes = {"item": pl.Int64, "split": pl.Int8}

_TEST_FILE_COLUMNS = ("sample_id", "user_id", "candidates", "target", "timestamp")
_FILE_COLUMNS = {
    TRAIN: (*_TEST_FILE_COLUMNS, "domain", "history"),
    VALIDATION: ("sample_id",),
    TEST: _TEST_FILE_COLUMNS,
}
"""Columns that are read from the files of samples, by split."""


@dataclass(frozen=True)
class InspectionResult:
    """What an inspection finds.

    Attributes:
        leak_counts: Count of each check in `leakage.ALL_CHECKS`.
        distributions: Distributions of the interactions.
        prompt_injections: Titles with prompt injections, by domain and kind.
    """

    leak_counts: Mapping[str, int]
    distributions: Distributions
    prompt_injections: tuple[TitlesWithInjection, ...] = ()

    @property
    def failed_checks(self) -> dict[str, int]:
        """Counts that must be 0 in a sound corpus and are not."""
        return {
            check: self.leak_counts[check]
            for check in leakage.LEAK_CHECKS
            if self.leak_counts[check]
        }


def inspect_corpus(corpus: Corpus) -> InspectionResult:
    """Inspects all rows of a corpus, up to its version.

    Raises:
        CorpusError: A version has no stored interactions, or a file is missing or damaged.
    """
    metadata = corpus.commits[-1].metadata
    interaction_files = stored_interactions.list_files(corpus)
    sample_files = [
        (stream, file)
        for split in SPLITS
        for stream in corpus.streams(split)
        if stream.source.kind is not SourceKind.TEXT
        for file in stream.files
    ]
    num_interactions = sum(file.rows for file in interaction_files)
    num_samples = sum(file.rows for _, file in sample_files)
    item_indices = catalogue.decode_runs(metadata["item_runs"])
    with open_scratch_file() as scratch_file, ThreadPoolExecutor(THREADS) as threads:
        inspector = Inspector(
            scratch_file,
            stored_interactions.count_user_ranges(num_interactions),
            stored_interactions.count_user_ranges(num_samples),
            {domain: item_indices[domain] for domain in metadata["held_out"]},
        )

        def add_interactions(file: DataFile) -> None:
            inspector.add_interactions(_read_columns(file, _INTERACTION_COLUMNS))

        def add_samples(stream_file: tuple[Stream, DataFile]) -> None:
            stream, file = stream_file
            rows = _read_columns(file, _FILE_COLUMNS[stream.split])
            inspector.add_samples(stream.source, stream.split, rows)

        # `list` waits for the threads and raises their errors.
        list(threads.map(add_interactions, interaction_files))
        list(threads.map(add_samples, sample_files))
        return replace(inspector.result(), prompt_injections=find_titles_with_injections(corpus))


class Inspector:
    """Collects the rows of a corpus, in any order and from several threads, then counts them."""

    def __init__(
        self,
        scratch_file: ScratchFile,
        num_user_partitions: int,
        num_id_partitions: int,
        held_out_items: Mapping[str, IntArray],
    ) -> None:
        """Starts without rows.

        Args:
            scratch_file: File that rows are written to.
            num_user_partitions: Partitions of interactions and samples, by user.
            num_id_partitions: Partitions of sample ids, and of targets by item.
            held_out_items: Item indices of each domain that is held out of pre-training.
        """
        self._held_out_domains = tuple(held_out_items)
        self._held_out_items = np.concatenate([np.arange(0), *held_out_items.values()])
        self._interactions = HashPartitions(scratch_file, num_user_partitions, _INTERACTION_COLUMNS)
        self._samples = HashPartitions(scratch_file, num_user_partitions, _SAMPLE_COLUMNS)
        self._ids = HashPartitions(scratch_file, num_id_partitions, _ID_COLUMNS)
        self._targets = HashPartitions(scratch_file, num_id_partitions, _TARGET_COLUMNS)
        self._held_out_counts: list[Counter[str]] = []

    def add_interactions(self, rows: pl.DataFrame) -> None:
        """Adds stored interactions, with the columns of `schemas.STORED_INTERACTION_SCHEMA`."""
        self._interactions.append(rows)

    def add_samples(self, source: Source, split: str, rows: pl.DataFrame) -> None:
        """Adds samples of one source and split, with the columns of `schemas.SAMPLE_SCHEMA`.

        Columns that the split is not checked by may be missing.
        """
        rows = rows.with_columns(split=pl.lit(SPLITS.index(split), pl.Int8))
        self._ids.append(rows)
        if split == VALIDATION:
            return
        rows = rows.with_columns(
            item=pl.col("candidates").list.get(pl.col("target").cast(pl.Int64))
        )
        # Test samples are counted; of training samples only the set of items is needed.
        self._targets.append(rows.unique("item") if split == TRAIN else rows)
        if split == TEST:
            self._samples.append(rows.with_columns(history=pl.lit(None, pl.List(pl.Int64))))
        elif source.kind in (SourceKind.MIXED, SourceKind.DOMAIN):
            self._samples.append(rows)
            self._held_out_counts.append(
                leakage.count_held_out_rows(rows, self._held_out_domains, self._held_out_items)
            )

    def result(self) -> InspectionResult:
        """Counts all rows that were added."""
        leaks = sum(self._held_out_counts, Counter[str]())
        counts = InteractionCounts.from_interactions(pl.DataFrame(schema=_INTERACTION_COLUMNS))
        for index in range(self._interactions.num_partitions):
            interactions = self._interactions.read(index)
            counts += InteractionCounts.from_interactions(interactions)
            leaks.update(leakage.count_user_leaks(interactions, self._samples.read_batches(index)))
        for index in range(self._ids.num_partitions):
            leaks.update(leakage.count_id_leaks(self._ids.read(index)))
            leaks.update(leakage.count_untrained_items(self._targets.read(index)))
        return InspectionResult(
            {check: leaks[check] for check in leakage.ALL_CHECKS}, counts.to_distributions()
        )


def _read_columns(file: DataFile, columns: Iterable[str]) -> pl.DataFrame:
    with translate_file_errors(file.uri):
        return pl.DataFrame(delta.open_parquet(file.uri).read(list(columns), use_threads=False))

"""One walk over all that a corpus holds: does it leak, and what does it look like.

Interactions and samples are put aside on the local disk in parts: by users, by ids, by items. A part is counted at a time, and counts add up: memory
grows with the items, and of all else holds a part, and where each piece of one lies.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl

from corpus.inspect import leakage
from corpus.inspect.distributions import Distributions, InteractionCounts
from corpus.sampling.sequences import SPLITS, TEST, TRAIN, VALIDATION, IntArray
from corpus.sampling.source import Source, SourceKind
from corpus.store import catalogue, delta, stored_interactions
from corpus.store.delta import DataFile
from corpus.store.scratch import (
    THREADS,
    ColumnTypes,
    HashPartitions,
    ScratchFile,
    open_scratch_file,
)
from corpus.store.tables import Corpus, translate_file_errors

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
"""Columns that are put aside, the key first. split: index into SPLITS; item: the index of the target."""

_TEST_FILE_COLUMNS = ("sample_id", "user_id", "candidates", "target", "timestamp")
_FILE_COLUMNS = {
    TRAIN: (*_TEST_FILE_COLUMNS, "domain", "history"),
    VALIDATION: ("sample_id",),
    TEST: _TEST_FILE_COLUMNS,
}
"""Columns of samples that are read."""


@dataclass(frozen=True)
class InspectionResult:
    """leaks: the numbers of `leakage.COUNTED`; shape: that of the interactions."""

    leak_counts: Mapping[str, int]
    distributions: Distributions

    @property
    def failed_checks(self) -> dict[str, int]:
        """The numbers that had to be 0 and are not."""
        return {
            what: self.leak_counts[what] for what in leakage.LEAK_CHECKS if self.leak_counts[what]
        }


def inspect_corpus(corpus: Corpus) -> InspectionResult:
    """Read all rows of a corpus, up to its version. Raises CorpusError for one that kept no interactions, or a file that is missing or damaged."""
    told, interactions = corpus.commits[-1].metadata, stored_interactions.list_files(corpus)
    samples = [
        (stream, file)
        for split in SPLITS
        for stream in corpus.streams(split)
        if stream.source.kind is not SourceKind.TEXT
        for file in stream.files
    ]
    users, ids = (
        stored_interactions.user_range_count(sum(file.rows for file in interactions)),
        stored_interactions.user_range_count(sum(file.rows for _, file in samples)),
    )
    items = catalogue.decode_runs(told["item_runs"])
    with open_scratch_file() as aside, ThreadPoolExecutor(THREADS) as threads:
        walk = Inspector(aside, users, ids, {domain: items[domain] for domain in told["held_out"]})
        list(
            threads.map(
                lambda file: walk.add_interactions(_read_columns(file, _INTERACTION_COLUMNS)),
                interactions,
            )
        )
        list(
            threads.map(
                lambda of: walk.add_samples(
                    of[0].source, of[0].split, _read_columns(of[1], _FILE_COLUMNS[of[0].split])
                ),
                samples,
            )
        )
        return walk.result()


class Inspector:
    """Takes the rows of a corpus, some at a time, in any order and from several threads; then counts."""

    def __init__(
        self,
        scratch_file: ScratchFile,
        num_user_partitions: int,
        num_id_partitions: int,
        held_out_items: Mapping[str, IntArray],
    ) -> None:
        """users, ids: parts into which rows are cut. held_out: domains that are out of pre-training, with their items."""
        self._held_out_domains, self._held_out_items = (
            tuple(held_out_items),
            np.concatenate([np.arange(0), *held_out_items.values()]),
        )
        self._interactions, self._samples = (
            HashPartitions(scratch_file, num_user_partitions, _INTERACTION_COLUMNS),
            HashPartitions(scratch_file, num_user_partitions, _SAMPLE_COLUMNS),
        )
        self._ids, self._targets = (
            HashPartitions(scratch_file, num_id_partitions, _ID_COLUMNS),
            HashPartitions(scratch_file, num_id_partitions, _TARGET_COLUMNS),
        )
        self._held_out_counts: list[Counter[str]] = []

    def add_interactions(self, rows: pl.DataFrame) -> None:
        """Some kept interactions, as in `samples.KEPT`."""
        self._interactions.append(rows)

    def add_samples(self, source: Source, split: str, rows: pl.DataFrame) -> None:
        """Some samples of one source and split, as in `samples.SCHEMA`."""
        rows = rows.with_columns(split=pl.lit(SPLITS.index(split), pl.Int8))
        self._ids.append(rows)
        if split == VALIDATION:
            return
        rows = rows.with_columns(
            item=pl.col("candidates").list.get(pl.col("target").cast(pl.Int64))
        )
        self._targets.append(rows.unique("item") if split == TRAIN else rows)
        if split == TEST:
            self._samples.append(rows.with_columns(history=pl.lit(None, pl.List(pl.Int64))))
        elif source.kind in (SourceKind.MIXED, SourceKind.DOMAIN):
            self._samples.append(rows)
            self._held_out_counts.append(
                leakage.count_held_out_rows(rows, self._held_out_domains, self._held_out_items)
            )

    def result(self) -> InspectionResult:
        """What all rows that were taken come to."""
        leaks = sum(self._held_out_counts, Counter[str]())
        counts = InteractionCounts.from_interactions(pl.DataFrame(schema=_INTERACTION_COLUMNS))
        for number in range(self._interactions.num_partitions):
            known = self._interactions.read(number)
            counts += InteractionCounts.from_interactions(known)
            leaks.update(leakage.count_user_leaks(known, self._samples.read_batches(number)))
        for number in range(self._ids.num_partitions):
            leaks.update(leakage.count_id_leaks(self._ids.read(number)))
            leaks.update(leakage.count_untrained_items(self._targets.read(number)))
        return InspectionResult(
            {name: leaks[name] for name in leakage.ALL_CHECKS}, counts.to_distributions()
        )


def _read_columns(file: DataFile, columns: Iterable[str]) -> pl.DataFrame:
    with translate_file_errors(file.uri):
        return pl.DataFrame(delta.open_parquet(file.uri).read(list(columns)))

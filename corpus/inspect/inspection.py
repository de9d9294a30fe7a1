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
from corpus.inspect.distributions import Counts, Shape
from corpus.local.make_samples import THREADS
from corpus.sampling.replay_text import TEXT
from corpus.sampling.samples import MIXED
from corpus.sampling.sequences import SPLITS, TEST, TRAIN, VALIDATION, Ints
from corpus.store import catalogue, delta, stored_interactions
from corpus.store.delta import FilePart
from corpus.store.scratch import Columns, Parts, Scratch, scratch
from corpus.store.tables import Corpus, named

_KEPT: Columns = {
    "user_id": pl.String,
    "domain": pl.String,
    "item_index": pl.Int64,
    "timestamp": pl.Int64,
    "split": pl.Int8,
}
_SAMPLES: Columns = {
    "user_id": pl.String,
    "split": pl.Int8,
    "item": pl.Int64,
    "timestamp": pl.Int64,
    "history": pl.List(pl.Int64),
}
_IDS: Columns = {"sample_id": pl.Int64, "split": pl.Int8}
_TARGETS: Columns = {"item": pl.Int64, "split": pl.Int8}
"""Columns that are put aside, the key first. split: index into SPLITS; item: the index of the target."""

_OF_TEST = ("sample_id", "user_id", "candidates", "target", "timestamp")
_READ = {TRAIN: (*_OF_TEST, "domain", "history"), VALIDATION: ("sample_id",), TEST: _OF_TEST}
"""Columns of samples that are read."""


@dataclass(frozen=True)
class Inspected:
    """leaks: the numbers of `leakage.COUNTED`; shape: that of the interactions."""

    leaks: Mapping[str, int]
    shape: Shape

    @property
    def leaking(self) -> dict[str, int]:
        """The numbers that had to be 0 and are not."""
        return {what: self.leaks[what] for what in leakage.SOUND if self.leaks[what]}


def inspect(corpus: Corpus) -> Inspected:
    """Read all rows of a corpus, up to its version. Raises CorpusError for one that kept no interactions, or a file that is missing or damaged."""
    told, interactions = corpus.commits[-1].metadata, stored_interactions.files(corpus)
    samples = [
        (stream, file)
        for split in SPLITS
        for stream in corpus.streams(split)
        if not stream.source.startswith(TEXT)
        for file in stream.files
    ]
    users, ids = (
        stored_interactions.parts(sum(file.rows for file in interactions)),
        stored_interactions.parts(sum(file.rows for _, file in samples)),
    )
    items = catalogue.indices_of(told["item_runs"])
    with scratch() as aside, ThreadPoolExecutor(THREADS) as threads:
        walk = Walk(aside, users, ids, {domain: items[domain] for domain in told["held_out"]})
        list(threads.map(lambda file: walk.take_interactions(_read(file, _KEPT)), interactions))
        list(
            threads.map(
                lambda of: walk.take_samples(
                    of[0].source, of[0].split, _read(of[1], _READ[of[0].split])
                ),
                samples,
            )
        )
        return walk.found()


class Walk:
    """Takes the rows of a corpus, some at a time, in any order and from several threads; then counts."""

    def __init__(self, aside: Scratch, users: int, ids: int, held_out: Mapping[str, Ints]) -> None:
        """users, ids: parts into which rows are cut. held_out: domains that are out of pre-training, with their items."""
        self._held_out, self._items = (
            tuple(held_out),
            np.concatenate([np.arange(0), *held_out.values()]),
        )
        self._known, self._samples = Parts(aside, users, _KEPT), Parts(aside, users, _SAMPLES)
        self._ids, self._targets = Parts(aside, ids, _IDS), Parts(aside, ids, _TARGETS)
        self._of_domains: list[Counter[str]] = []

    def take_interactions(self, rows: pl.DataFrame) -> None:
        """Some kept interactions, as in `samples.KEPT`."""
        self._known.put(rows)

    def take_samples(self, source: str, split: str, rows: pl.DataFrame) -> None:
        """Some samples of one source and split, as in `samples.SCHEMA`."""
        rows = rows.with_columns(split=pl.lit(SPLITS.index(split), pl.Int8))
        self._ids.put(rows)
        if split == VALIDATION:
            return
        rows = rows.with_columns(
            item=pl.col("candidates").list.get(pl.col("target").cast(pl.Int64))
        )
        self._targets.put(rows.unique("item") if split == TRAIN else rows)
        if split == TEST:
            self._samples.put(rows.with_columns(history=pl.lit(None, pl.List(pl.Int64))))
        elif source == MIXED or source.startswith("domain/"):
            self._samples.put(rows)
            self._of_domains.append(leakage.of_domains(rows, self._held_out, self._items))

    def found(self) -> Inspected:
        """What all rows that were taken come to."""
        leaks = sum(self._of_domains, Counter[str]())
        counts = Counts.of(pl.DataFrame(schema=_KEPT))
        for number in range(self._known.count):
            known = self._known.whole(number)
            counts += Counts.of(known)
            leaks.update(leakage.of_users(known, self._samples.part(number)))
        for number in range(self._ids.count):
            leaks.update(leakage.of_ids(self._ids.whole(number)))
            leaks.update(leakage.of_items(self._targets.whole(number)))
        return Inspected({name: leaks[name] for name in leakage.COUNTED}, counts.shape())


def _read(file: FilePart, columns: Iterable[str]) -> pl.DataFrame:
    with named(file.path):
        return pl.DataFrame(delta.open_parquet(file.path).read(list(columns)))

"""The interface of what builds and appends: `corpus.local` in one process, `corpus.distributed` on Ray.

Both decide by the same functions and write the same files, byte for byte.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from cluster.console import Say
from corpus.ingest.quarantine import QuarantinedRows
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store.catalogue import group_item_indices
from corpus.store.delta import WrittenFile
from corpus.store.statistics import NewCounts
from corpus.store.stored_interactions import InteractionFile
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class UncommittedSamples:
    """Samples and kept interactions that are written but not committed; what statistics need of them."""

    sample_files: tuple[WrittenFile, ...]
    interaction_files: tuple[InteractionFile, ...]
    mixed_users: int
    dropped: Counter[str]


@dataclass(frozen=True)
class Prepared(ABC):
    """All domains after cleaning and k-core.

    items: ITEMS_SCHEMA, row i is item i; dropped: rows left out, by reason; quarantined: of these, what cannot be used; came: `statistics.came`,
    bounds: `samples.at_most` of all users.
    """

    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]
    counts_by_domain: Mapping[str, tuple[int, int]]
    sample_bounds: Mapping[tuple[str, str], int]

    def item_indices(self) -> dict[str, IntArray]:
        """Item indices of each domain, ascending."""
        return group_item_indices(self.items)

    @abstractmethod
    def write_sample_files(self, data: DataSettings, seed: int, uri: str) -> UncommittedSamples:
        """Make and write all samples."""


@dataclass(frozen=True)
class AppendDelta(ABC):
    """What comes in on one version of a corpus.

    corpus: that version; data: settings of the whole corpus after it; rows: interactions that come in; items: domain, item_id, title of theirs, in
    the order in which those without a number get one; dropped: interactions left out, by reason; quarantined: of these, what cannot be used.
    """

    corpus: Corpus
    data: DataSettings
    rows: int
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]

    @abstractmethod
    def write_sample_files(
        self, numbered_items: pl.DataFrame, item_indices: Mapping[str, IntArray], seed: int
    ) -> tuple[UncommittedSamples, NewCounts]:
        """Make and write all samples of the next version; and tell `statistics.came`.

        numbered: domain, item_id, item_index of `items`; indices: of each domain in the next version, ascending.
        Raises DataError where a user leaves too few items to draw negatives from.
        """


@dataclass(frozen=True)
class AppendInput(ABC):
    """The behaviours that an append was given. data: names the domains that are appended, and no other."""

    data: DataSettings

    @property
    def domains(self) -> list[str]:
        """The domains, in the order in which their items are numbered."""
        return sorted((*self.data.domains, *self.data.held_out))

    @abstractmethod
    def compute_delta(self, corpus: Corpus, data: DataSettings, say: Say) -> AppendDelta:
        """What of them comes in on a version; writes nothing. data: as in Coming. Raises DataError for behaviours that cannot be used."""


class MapFunction(Protocol):
    """The built-in `map`, or a function that does the same elsewhere."""

    def __call__(self, function: Callable[[Any], Any], values: Iterable[Any], /) -> Iterable[Any]:
        """Returns the function's results, in the order of the values."""


@dataclass(frozen=True)
class Backend:
    """How a build and an append do their work.

    Attributes:
        map: Applies a function to many values, such as files.
        prepare: Reads, cleans and numbers all domains of a build.
        append_input: Takes the settings that name the domains of an append.
    """

    map: MapFunction
    prepare: Callable[[DataSettings, Say], Prepared]
    append_input: Callable[[DataSettings], AppendInput]

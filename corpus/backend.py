"""The interface of a backend, which turns interactions into the files of a corpus version.

There are two backends: `corpus.local` works in one process, `corpus.distributed` on Ray.
Both call the same functions for every decision, so they write the same files, byte for byte
(docs/decisions/011-building-on-ray.md). `corpus.build` and `corpus.append` call them in this order:

    build:   Backend.prepare      -> Prepared                   -> UncommittedSamples
    append:  Backend.append_input -> AppendInput -> AppendDelta -> WriteSamples
                                                                -> UncommittedSamples

A backend writes the files of samples and of stored interactions. It commits nothing, and it leaves
the table of items to its caller.
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


class MapFunction(Protocol):
    """The built-in `map`, or a function that does the same in other processes."""

    def __call__(self, function: Callable[[Any], Any], values: Iterable[Any], /) -> Iterable[Any]:
        """Returns the function's results, in the order of the values."""


@dataclass(frozen=True)
class UncommittedSamples:
    """The files of a corpus version that are written but not yet committed, and their counts.

    Attributes:
        sample_files: Files of samples, by name.
        interaction_files: Files of the version's own interactions, by name.
        mixed_users: Users who get their first mixed samples with this version.
        dropped: New interactions that are the target of no sample, by reason.
    """

    sample_files: tuple[WrittenFile, ...]
    interaction_files: tuple[InteractionFile, ...]
    mixed_users: int
    dropped: Counter[str]


@dataclass(frozen=True)
class Prepared(ABC):
    """The interactions of a build after cleaning and k-core; the next step is to write samples.

    Attributes:
        items: Items of all domains, a frame of ITEMS_SCHEMA whose row i is item i.
        dropped: Rows left out so far, counted by reason; those in `quarantined` are included.
        quarantined: Rows that cannot be used.
        counts_by_domain: Interactions and users of each domain.
        sample_bounds: Samples that each (source, split) can have, at most. Exact except for
            `mixed` (`corpus.sampling.samples.max_sample_counts`).
    """

    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]
    counts_by_domain: NewCounts
    sample_bounds: Mapping[tuple[str, str], int]

    def item_indices(self) -> dict[str, IntArray]:
        """Returns the item indices of each domain, ascending."""
        return group_item_indices(self.items)

    @abstractmethod
    def write_sample_files(self, data: DataSettings, seed: int, uri: str) -> UncommittedSamples:
        """Makes all samples of version 0 and writes its files, without committing them.

        Args:
            data: Settings of the build.
            seed: Seed for drawing candidates.
            uri: URI of the corpus.
        """


class WriteSamples(Protocol):
    """Makes all samples of a version that were checked, and writes its files."""

    def __call__(self, seed: int, /) -> tuple[UncommittedSamples, NewCounts]:
        """Writes the files without committing them.

        Args:
            seed: Seed for drawing candidates.

        Returns:
            The files, and the added interactions and users of each domain
            (`EncodedInteractions.count_new_by_domain`).
        """


@dataclass(frozen=True)
class AppendDelta(ABC):
    """What an append adds to one version of a corpus; the next step is to check it.

    Attributes:
        corpus: The version that is appended to.
        data: Settings that name all domains of the corpus after the append.
        rows: Interactions that are added.
        items: Items of these interactions (domain, item_id, title). Items that are new to the
            corpus are numbered in this order.
        dropped: Rows left out so far, counted by reason; those in `quarantined` are included.
        quarantined: Rows that cannot be used.
    """

    corpus: Corpus
    data: DataSettings
    rows: int
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]

    @abstractmethod
    def check(
        self, numbered_items: pl.DataFrame, item_indices: Mapping[str, IntArray]
    ) -> WriteSamples:
        """Checks that the samples of the next version can be made. Writes nothing.

        Args:
            numbered_items: `items` with their numbers: domain, item_id, item_index.
            item_indices: Item indices of each domain in the next version, ascending.

        Returns:
            What makes these samples and writes their files.

        Raises:
            DataError: A user interacted with so many items of a domain that too few are left to
                draw negatives from.
        """


@dataclass(frozen=True)
class AppendInput(ABC):
    """The interactions that an append adds, before they are compared with the corpus.

    An append that another process overtakes computes its delta again, on the newer version.

    Attributes:
        data: Settings that name the appended domains only.
    """

    data: DataSettings

    @property
    def domains(self) -> list[str]:
        """The appended domains, in the order in which their items are numbered."""
        return sorted((*self.data.domains, *self.data.held_out))

    @abstractmethod
    def compute_delta(self, corpus: Corpus, data: DataSettings, say: Say) -> AppendDelta:
        """Selects the interactions that the append adds to a corpus version; writes nothing.

        Args:
            corpus: The version to append to.
            data: Settings that name all domains of the corpus after the append.
            say: Receives progress lines.

        Raises:
            DataError: The interactions cannot be used.
        """


@dataclass(frozen=True)
class Backend:
    """How a build and an append do their work.

    Attributes:
        map: Applies a function to many values, such as files.
        prepare: Reads, cleans and numbers all domains of a build. Raises DataError for
            interactions that cannot be used.
        append_input: Takes the settings that name the domains of an append.
    """

    map: MapFunction
    prepare: Callable[[DataSettings, Say], Prepared]
    append_input: Callable[[DataSettings], AppendInput]

"""The items and the samples of one domain as its models see them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from corpus.sampling import hashing
from corpus.sampling.source import Source
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class Domain:
    """A domain of a corpus. source: its samples; indices: [I] the item_index of each item, ascending; titles: of every item of the corpus."""

    name: str
    source: Source
    item_indices: NDArray[np.int64]
    titles: tuple[str, ...]

    @classmethod
    def from_corpus(cls, corpus: Corpus, name: str, split: str = "train") -> "Domain":
        """Raises CorpusError when the domain has no samples in the split, naming those that have."""
        source = corpus.find_domain_source(name, split)
        items = corpus.read_items()
        here = np.flatnonzero(np.array(items["domain"].to_pylist()) == name)
        return cls(
            name, source, items["item_index"].to_numpy()[here], tuple(items["title"].to_pylist())
        )

    def to_local_numbers(self, item_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number 0 .. I - 1 within the domain of items given by item_index."""
        return np.searchsorted(self.item_indices, item_indices)

    def items_by_index(self) -> dict[int, tuple[str, int]]:
        """Title and number of every item of the domain, by item_index."""
        return {
            index: (self.titles[index], number)
            for number, index in enumerate(self.item_indices.tolist())
        }


def sort_by_id(samples: pa.Table, limit: int | None = None) -> pa.Table:
    """Samples in the order of their (unsigned) ids, the first `most` of them: a fixed, even draw, because ids are hashes."""
    order = np.argsort(samples["sample_id"].to_numpy().view(np.uint64), kind="stable")[:limit]
    return samples.take(pa.array(order))


def select_whole_users(samples: pa.Table, max_samples: int | None) -> pa.Table:
    """Samples in the order of their ids, cut to whole users with at most `most` samples in all, drawn by a hash of their ids; at least one user."""
    if max_samples is None or len(samples) <= max_samples:
        return sort_by_id(samples)
    users, inverse = np.unique(np.array(samples["user_id"].to_pylist()), return_inverse=True)
    drawn = np.argsort(hashing.splitmix64(hashing.hash_strings(users.tolist())), kind="stable")
    fit = np.cumsum(np.bincount(inverse)[drawn]) <= max_samples
    fit[0] = True
    return sort_by_id(samples.filter(pa.array(np.isin(inverse, drawn[fit]))))

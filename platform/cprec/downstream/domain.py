"""The items and samples of one domain, as its models see them."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from corpus.sampling import hashing
from corpus.sampling.source import Source
from corpus.store.tables import Corpus


@dataclass(frozen=True)
class Domain:
    """A domain of a corpus.

    Attributes:
        name: Name of the domain.
        source: Source of its samples.
        item_indices: Index in the catalogue of each of its items [items], ascending.
        titles: Titles of all items of the corpus, by index in the catalogue.
    """

    name: str
    source: Source
    item_indices: NDArray[np.int64]
    titles: tuple[str, ...]

    @classmethod
    def from_corpus(cls, corpus: Corpus, name: str, split: str = "train") -> "Domain":
        """Reads a domain from a corpus.

        Args:
            corpus: The corpus.
            name: Name of the domain.
            split: Split in which the domain must have samples.

        Raises:
            CorpusError: The domain has no samples in the split; the message names those that have.
        """
        source = corpus.find_domain_source(name, split)
        items = corpus.read_items()
        rows = np.flatnonzero(np.array(items["domain"].to_pylist()) == name)
        return cls(
            name, source, items["item_index"].to_numpy()[rows], tuple(items["title"].to_pylist())
        )

    def to_local_numbers(self, item_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Converts catalogue indices of the domain's items to numbers from 0 to items - 1."""
        return np.searchsorted(self.item_indices, item_indices)

    def items_by_index(self) -> dict[int, tuple[str, int]]:
        """Returns title and local number of every item of the domain, by catalogue index."""
        return {
            index: (self.titles[index], number)
            for number, index in enumerate(self.item_indices.tolist())
        }


def sort_by_id(samples: pa.Table, limit: int | None = None) -> pa.Table:
    """Returns samples in the order of their (unsigned) ids.

    Ids are hashes, so the first samples in this order are a fixed random draw.

    Args:
        samples: Samples of the corpus.
        limit: Number of samples to return, at most; None returns all.
    """
    order = np.argsort(samples["sample_id"].to_numpy().view(np.uint64), kind="stable")[:limit]
    return samples.take(pa.array(order))


def newest_of_each_user(samples: pa.Table) -> pa.Table:
    """Returns the newest sample of each user, in the order of the samples' (unsigned) ids.

    A user has one sample of a held-out split by each corpus version that brought purchases.

    Args:
        samples: Samples of one domain and split.
    """
    ordered = sort_by_id(samples)
    columns = {name: pl.from_arrow(ordered[name]) for name in ("user_id", "timestamp")}
    oldest_first = (
        pl.DataFrame(columns).with_row_index("row").sort("timestamp", maintain_order=True)
    )
    newest = oldest_first.unique("user_id", keep="last")
    return ordered.take(pa.array(newest["row"].sort().to_numpy()))


def rows_of_rank(rows: pa.Table, rank: int, world_size: int) -> pa.Table:
    """Returns the rows that a worker scores: each `world_size`-th; none if there are too few."""
    # Arrow would not know the type of an empty list.
    return rows.take(pa.array(range(rank, len(rows), world_size), pa.int64()))


def select_whole_users(samples: pa.Table, max_samples: int | None) -> pa.Table:
    """Selects all samples of some users, in the order of the samples' ids.

    Users are drawn in the order of a hash of their ids, as long as their samples fit. The first
    user is always selected.

    Args:
        samples: Samples of the corpus.
        max_samples: Number of samples to return, at most; None returns all.
    """
    if max_samples is None or len(samples) <= max_samples:
        return sort_by_id(samples)
    users, user_of_row = np.unique(np.array(samples["user_id"].to_pylist()), return_inverse=True)
    draw_order = np.argsort(hashing.splitmix64(hashing.hash_strings(users.tolist())), kind="stable")
    fits = np.cumsum(np.bincount(user_of_row)[draw_order]) <= max_samples
    fits[0] = True
    return sort_by_id(samples.filter(pa.array(np.isin(user_of_row, draw_order[fits]))))

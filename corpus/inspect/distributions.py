"""Distributions of a corpus's interactions: lengths, popularity, ties, overlap of domains. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

LENGTH_BIN_STARTS = (1, 2, 3, 5, 9, 17, 33, 65, 129)
"""Smallest sequence length of each bin."""

TOP_ITEM_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Parts of the items, the most popular first, whose fraction of all interactions is shown."""


@dataclass(frozen=True)
class Distributions:
    """Distributions of the interactions of each domain, and overlap of every pair of domains.

    Attributes:
        lengths: By domain, number of sequences in each bin of LENGTH_BIN_STARTS.
        popularity: By domain, fraction of interactions that the most popular items have, for each
            of TOP_ITEM_FRACTIONS.
        ties: By domain, fraction of interactions that have the time of the one before them in
            their sequence.
        overlap: By pair of domains, number of users who are in both.
    """

    lengths: Mapping[str, tuple[int, ...]]
    popularity: Mapping[str, tuple[float, ...]]
    ties: Mapping[str, float]
    overlap: Mapping[tuple[str, str], int]

    @property
    def domains(self) -> list[str]:
        """All domains, sorted by name."""
        return sorted(self.ties)

    def length_fractions(self, domain: str) -> list[float]:
        """Returns the fraction of a domain's sequences in each bin of LENGTH_BIN_STARTS."""
        return [count / sum(self.lengths[domain]) for count in self.lengths[domain]]

    def overlap_fraction(self, a: str, b: str) -> float:
        """Returns the number of users in both domains, divided by those of the smaller domain."""
        return self.overlap[a, b] / min(self.overlap[a, a], self.overlap[b, b])


@dataclass(frozen=True)
class InteractionCounts:
    """Counts that `Distributions` follow from; those of separate groups of users add up.

    Each frame has a column n, the count, after the columns that it is counted by.

    Attributes:
        lengths: domain, length, number of sequences.
        items: domain, item_index, number of interactions.
        distinct_times: domain, number of distinct times in a sequence, summed over sequences.
        pairs: domain, other, number of users who are in both.
    """

    lengths: pl.DataFrame
    items: pl.DataFrame
    distinct_times: pl.DataFrame
    pairs: pl.DataFrame

    @classmethod
    def from_interactions(cls, interactions: pl.DataFrame) -> "InteractionCounts":
        """Counts *all* interactions of some users: user_id, domain, item_index, timestamp."""
        sequences = interactions.group_by("user_id", "domain").agg(
            length=pl.len(), distinct_times=pl.col("timestamp").n_unique()
        )
        domain_pairs = sequences.select("user_id", "domain").join(
            sequences.select("user_id", other="domain"), on="user_id"
        )
        return cls(
            sequences.group_by("domain", "length").agg(n=pl.len().cast(pl.Int64)),
            interactions.group_by("domain", "item_index").agg(n=pl.len().cast(pl.Int64)),
            sequences.group_by("domain").agg(n=pl.col("distinct_times").sum().cast(pl.Int64)),
            domain_pairs.group_by("domain", "other").agg(n=pl.len().cast(pl.Int64)),
        )

    def __add__(self, other: "InteractionCounts") -> "InteractionCounts":
        return InteractionCounts(
            *(
                _add_counts(getattr(self, name), getattr(other, name))
                for name in ("lengths", "items", "distinct_times", "pairs")
            )
        )

    def to_distributions(self) -> Distributions:
        """Returns the distributions of all interactions that were counted."""
        distinct_times = dict(self.distinct_times.iter_rows())
        interactions = dict(self.items.group_by("domain").agg(pl.col("n").sum()).iter_rows())
        domains = sorted(interactions)
        overlap = {(a, b): n for a, b, n in self.pairs.iter_rows()}
        return Distributions(
            {
                domain: _bin_lengths(self.lengths.filter(pl.col("domain") == domain))
                for domain in domains
            },
            {
                domain: _top_item_fractions(self.items.filter(pl.col("domain") == domain)["n"])
                for domain in domains
            },
            {domain: 1 - distinct_times[domain] / interactions[domain] for domain in domains},
            {(a, b): overlap.get((a, b), 0) for a in domains for b in domains},
        )


def length_bin_labels() -> tuple[str, ...]:
    """Returns the labels of the bins of LENGTH_BIN_STARTS: "1", "2", "3-4", ..., "129+"."""
    labels = []
    for start, next_start in pairwise(LENGTH_BIN_STARTS):
        last = next_start - 1
        labels.append(str(start) if start == last else f"{start}-{last}")
    return (*labels, f"{LENGTH_BIN_STARTS[-1]}+")


def _add_counts(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([a, b]).group_by(pl.exclude("n")).agg(pl.col("n").sum())


def _bin_lengths(lengths: pl.DataFrame) -> tuple[int, ...]:
    """Returns the number of sequences in each bin, from a count (n) per length."""
    at_least = [
        int(lengths.filter(pl.col("length") >= start)["n"].sum()) for start in LENGTH_BIN_STARTS
    ]
    return tuple(a - b for a, b in zip(at_least, [*at_least[1:], 0], strict=True))


def _top_item_fractions(counts: pl.Series) -> tuple[float, ...]:
    """Returns the fraction of interactions that the top items have, from a count per item."""
    ordered = counts.sort(descending=True)
    total = int(counts.sum())
    return tuple(
        int(ordered.head(max(1, round(fraction * counts.len()))).sum()) / total
        for fraction in TOP_ITEM_FRACTIONS
    )

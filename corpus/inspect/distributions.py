"""What the interactions of a corpus look like: lengths, popularity, overlap of domains, ties. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

LENGTH_BIN_STARTS = (1, 2, 3, 5, 9, 17, 33, 65, 129)
"""Lower ends of the classes of sequence lengths."""
TOP_ITEM_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The most popular items whose share of all interactions is told."""


@dataclass(frozen=True)
class Distributions:
    """By domain, and for two.

    lengths: sequences in each class of LENGTHS; popularity: share of interactions of the most popular items, for each of SHARES; ties: share of
    interactions that have the time of the one before them in their sequence; overlap: users in both of two domains.
    """

    lengths: Mapping[str, tuple[int, ...]]
    popularity: Mapping[str, tuple[float, ...]]
    ties: Mapping[str, float]
    overlap: Mapping[tuple[str, str], int]

    @property
    def domains(self) -> list[str]:
        """All domains, by name."""
        return sorted(self.ties)

    def length_fractions(self, domain: str) -> list[float]:
        """The share of a domain's sequences that is in each class of LENGTHS."""
        return [n / sum(self.lengths[domain]) for n in self.lengths[domain]]

    def overlap_fraction(self, a: str, b: str) -> float:
        """The share of the smaller domain's users that are in both."""
        return self.overlap[a, b] / min(self.overlap[a, a], self.overlap[b, b])


@dataclass(frozen=True)
class InteractionCounts:
    """What is counted of the interactions of some users; those of others add up. Each `n` counts what the columns before it tell apart.

    lengths: domain, length, n sequences; items: domain, item_index, n interactions; moments: domain, n different times in sequences;
    pairs: domain, other, n users in both.
    """

    lengths: pl.DataFrame
    items: pl.DataFrame
    distinct_times: pl.DataFrame
    pairs: pl.DataFrame

    @classmethod
    def from_interactions(cls, interactions: pl.DataFrame) -> "InteractionCounts":
        """found: *all* interactions of some users: user_id, domain, item_index, timestamp."""
        sizes = interactions.group_by("user_id", "domain").agg(
            length=pl.len(), distinct_times=pl.col("timestamp").n_unique()
        )
        both = sizes.select("user_id", "domain").join(
            sizes.select("user_id", other="domain"), on="user_id"
        )
        return cls(
            sizes.group_by("domain", "length").agg(n=pl.len().cast(pl.Int64)),
            interactions.group_by("domain", "item_index").agg(n=pl.len().cast(pl.Int64)),
            sizes.group_by("domain").agg(n=pl.col("distinct_times").sum().cast(pl.Int64)),
            both.group_by("domain", "other").agg(n=pl.len().cast(pl.Int64)),
        )

    def __add__(self, other: "InteractionCounts") -> "InteractionCounts":
        return InteractionCounts(
            *(
                _add_counts(getattr(self, name), getattr(other, name))
                for name in ("lengths", "items", "distinct_times", "pairs")
            )
        )

    def to_distributions(self) -> Distributions:
        """The shape of all that is counted."""
        moments = dict(self.distinct_times.iter_rows())
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
            {domain: 1 - moments[domain] / interactions[domain] for domain in domains},
            {(a, b): overlap.get((a, b), 0) for a in domains for b in domains},
        )


def length_bin_labels() -> tuple[str, ...]:
    """The classes of LENGTHS, as they are shown."""
    ends = [f"-{high - 1}" for high in LENGTH_BIN_STARTS[1:]]
    return (
        *(
            str(low) if end == f"-{low}" else f"{low}{end}"
            for low, end in zip(LENGTH_BIN_STARTS, ends, strict=False)
        ),
        f"{LENGTH_BIN_STARTS[-1]}+",
    )


def _add_counts(these: pl.DataFrame, those: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([these, those]).group_by(pl.exclude("n")).agg(pl.col("n").sum())


def _bin_lengths(lengths: pl.DataFrame) -> tuple[int, ...]:
    reaching = [
        int(lengths.filter(pl.col("length") >= low)["n"].sum()) for low in LENGTH_BIN_STARTS
    ]
    return tuple(a - b for a, b in zip(reaching, [*reaching[1:], 0], strict=True))


def _top_item_fractions(counts: pl.Series) -> tuple[float, ...]:
    ordered, every = counts.sort(descending=True), int(counts.sum())
    return tuple(
        int(ordered.head(max(1, round(share * counts.len()))).sum()) / every
        for share in TOP_ITEM_FRACTIONS
    )

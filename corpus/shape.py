"""What the interactions of a corpus look like: lengths, popularity, overlap of domains, ties. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

LENGTHS = (1, 2, 3, 5, 9, 17, 33, 65, 129)
"""Lower ends of the classes of sequence lengths."""
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The most popular items whose share of all interactions is told."""


@dataclass(frozen=True)
class Shape:
    """By domain, and for two.

    lengths: sequences in each class of LENGTHS; popularity: share of interactions of the most popular items, for each of SHARES; ties: share of
    interactions that have the time of the one before them in their sequence; overlap: users in both of two domains.
    """

    lengths: Mapping[str, tuple[int, ...]]
    popularity: Mapping[str, tuple[float, ...]]
    ties: Mapping[str, float]
    overlap: Mapping[tuple[str, str], int]


def shape(found: pl.DataFrame) -> Shape:
    """The shape of interactions: user_id, domain, item_id, timestamp."""
    domains = sorted(found["domain"].unique())
    parts = {domain: found.filter(pl.col("domain") == domain) for domain in domains}
    users = {domain: part.select("user_id").unique() for domain, part in parts.items()}
    return Shape(
        {domain: _lengths(part) for domain, part in parts.items()},
        {domain: _popularity(part) for domain, part in parts.items()},
        {domain: _ties(part) for domain, part in parts.items()},
        {(a, b): users[a].join(users[b], on="user_id", how="semi").height for a in domains for b in domains},
    )


def classes() -> tuple[str, ...]:
    """The classes of LENGTHS, as they are shown."""
    ends = [*(str(high - 1) for high in LENGTHS[1:]), "..."]
    return tuple(str(low) if str(low) == high else f"{low}-{high}" for low, high in zip(LENGTHS, ends, strict=True))


def _lengths(part: pl.DataFrame) -> tuple[int, ...]:
    sizes = part.group_by("user_id").len()["len"]
    reaching = [int((sizes >= low).sum()) for low in LENGTHS]
    return tuple(a - b for a, b in zip(reaching, [*reaching[1:], 0], strict=True))


def _popularity(part: pl.DataFrame) -> tuple[float, ...]:
    counts = part.group_by("item_id").len()["len"].sort(descending=True)
    return tuple(int(counts.head(max(1, round(share * counts.len()))).sum()) / part.height for share in SHARES)


def _ties(part: pl.DataFrame) -> float:
    return 1 - part.select("user_id", "timestamp").unique().height / part.height

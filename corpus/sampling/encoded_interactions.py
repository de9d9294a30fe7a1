"""Interactions as numbers: what a build holds of all of them at once. Pure.

An interaction is its user's number, its item's number and its time: 16 bytes, and 5 more where it comes from an earlier version. Names are kept once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from corpus.sampling import hashing
from corpus.sampling.sequences import IS_NEW

DomainInteractions = tuple[pl.DataFrame, pl.Series]
"""Interactions (user, item, timestamp) of some users in a domain, and the names of the users' numbers; those of items are told elsewhere."""

COUNT_BATCH_ROWS = 1 << 22
"""Interactions that are counted at a time, which bounds memory."""


@dataclass(frozen=True)
class EncodedInteractions:
    """Interactions of some users, no row twice.

    rows: user, item (rows of the tables below), timestamp, version (that each came with), split (index into SPLITS, null where new); by user;
    users: user_id, user_hash (the bits of the hash, as int64), in the order of hash and id;
    items: domain (an Enum in the order of names), item_id, item_index, in the order of domain and item_id.
    """

    rows: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame

    @classmethod
    def from_frame(cls, interactions: pl.DataFrame) -> "EncodedInteractions":
        """Interactions by names, in any order: user_id, domain, item_id, item_index, timestamp, version, split."""
        users, items = (
            _user_table(interactions["user_id"]),
            _item_table(interactions.select("domain", "item_id", "item_index").unique()),
        )
        rows = interactions.select(
            "item_index",
            "timestamp",
            "version",
            "split",
            user=encode_values(interactions["user_id"], users["user_id"]),
        )
        rows = rows.with_columns(
            item=encode_values(interactions["item_index"], items["item_index"])
        )
        return cls(
            rows.select("user", "item", "timestamp", "version", "split").sort("user"), users, items
        )

    @classmethod
    def from_domains(
        cls, domains: Sequence[DomainInteractions], items: pl.DataFrame, version: int = 0
    ) -> "EncodedInteractions":
        """Interactions that a version brings, a domain each. items: of all domains; their numbers are in the order of domain and item_id."""
        users = _user_table(pl.concat([names for _, names in domains]))
        rows = [
            part.select(
                "item",
                "timestamp",
                user=encode_values(names, users["user_id"]).gather(part["user"]),
            )
            for part, names in domains
        ]
        new = {"version": pl.lit(version, pl.Int32), "split": pl.lit(None, pl.Int8)}
        return cls(
            pl.concat(rows).sort("user").select("user", "item", "timestamp", **new),
            users,
            _item_table(items.select("domain", "item_id", "item_index")),
        )

    @classmethod
    def concat(cls, parts: Sequence["EncodedInteractions"]) -> "EncodedInteractions":
        """The interactions of several, no row of which is another's."""
        users = _user_table(pl.concat([part.users["user_id"] for part in parts]))
        named = [part.items.with_columns(pl.col("domain").cast(pl.String)) for part in parts]
        items = _item_table(pl.concat(named).unique())
        rows = []
        for part, of_part in zip(parts, named, strict=True):
            user, item = (
                encode_values(part.users["user_id"], users["user_id"]),
                encode_values(of_part["item_index"], items["item_index"]),
            )
            rows.append(
                part.rows.with_columns(
                    user=user.gather(part.rows["user"]), item=item.gather(part.rows["item"])
                )
            )
        return cls(pl.concat(rows).sort("user"), users, items)

    def filter_users(self, user_ids: pl.Series) -> "EncodedInteractions":
        """The interactions of some users, by their names; of others there may be none."""
        users = self.users.with_row_index("user").join(
            pl.DataFrame({"user_id": user_ids.unique()}),
            on="user_id",
            how="semi",
            maintain_order="left",
        )
        rows = self.rows.with_columns(
            user=encode_values(self.rows["user"], users["user"])
        ).drop_nulls("user")
        return EncodedInteractions(rows, users.drop("user"), self.items)

    def to_frame(self) -> pl.DataFrame:
        """The interactions by names, as `of` takes them."""
        user, item = self.rows["user"], self.rows["item"]
        of_item = self.items.select(pl.all().gather(item)).with_columns(
            pl.col("domain").cast(pl.String)
        )
        named = pl.DataFrame([self.users["user_id"].gather(user), *of_item.get_columns()])
        return named.hstack(self.rows.select("timestamp", "version", "split").rechunk())

    def select_hash_range(self, index: int, num_ranges: int) -> "EncodedInteractions":
        """The interactions of the users in the number-th of so many equal ranges of hashes, a power of two."""
        width = (1 << 64) // num_ranges
        # As int64 half of the hashes are negative and come first; no range but that of all hashes is torn by it.
        low = (
            int(np.uint64(index * width).view(np.int64))
            if num_ranges > 1
            else int(np.iinfo(np.int64).min)
        )
        hashes, user = self.users["user_hash"].to_numpy(), self.rows["user"].to_numpy()
        first, stop = (
            int(np.searchsorted(hashes, low)),
            int(np.searchsorted(hashes, low + (width - 1), side="right")),
        )
        start, end = np.searchsorted(user, np.array([first, stop], np.uint32))
        rows = self.rows.slice(start, end - start).with_columns(pl.col("user") - first)
        return EncodedInteractions(rows, self.users.slice(first, stop - first), self.items)

    @cached_property
    def num_new(self) -> int:
        """How many of the interactions the version in the making brings."""
        return self.rows.height - int(self.rows["split"].count())

    @cached_property
    def user_domain_counts(self) -> pl.DataFrame:
        """user, domain, size, new: each user's interactions in each domain, and how many of them are new."""
        counted = []
        for start in range(0, self.rows.height or 1, COUNT_BATCH_ROWS):
            rows = self.rows.slice(start, COUNT_BATCH_ROWS).select("user", "item", "split")
            by_domain = rows.select(
                "user", "split", domain=self.items["domain"].gather(rows["item"])
            ).group_by("user", "domain")
            counted.append(by_domain.agg(size=pl.len(), new=IS_NEW.sum()))
        # A user whose rows were counted in two slices comes twice.
        return (
            pl.concat(counted)
            .group_by("user", "domain")
            .sum()
            .cast({"domain": pl.String, "size": pl.Int64, "new": pl.Int64})
        )


def mark_as_new(interactions: pl.DataFrame, version: int) -> pl.DataFrame:
    """Interactions that a version brings, as `Coded.of` takes them."""
    columns = [pl.col(name) for name in ("user_id", "domain", "item_id", "item_index", "timestamp")]
    return interactions.select(
        *columns, version=pl.lit(version, pl.Int32), split=pl.lit(None, pl.Int8)
    )


def encode_values(values: pl.Series, categories: pl.Series) -> pl.Series:
    """The place of each value [n] in a series that holds each once; null if it is not there."""
    places = pl.DataFrame(
        {"value": categories, "place": np.arange(categories.len(), dtype=np.uint32)}
    )
    return pl.DataFrame({"value": values}).join(
        places, on="value", how="left", maintain_order="left"
    )["place"]


def remove_unused_categories(
    codes: pl.Series, categories: pl.Series
) -> tuple[pl.Series, pl.Series]:
    """Numbers [n] of names, and the names that they stand for, less those that none stands for."""
    used = np.flatnonzero(np.bincount(codes.to_numpy()))
    place = np.zeros(categories.len(), np.uint32)
    place[used] = np.arange(used.size)
    return pl.Series(place[codes.to_numpy()]), categories.gather(used)


def _user_table(names: pl.Series) -> pl.DataFrame:
    once = names.unique()
    return pl.DataFrame(
        {"user_id": once, "user_hash": hashing.hash_strings(once).view(np.int64)}
    ).sort("user_hash", "user_id")


def _item_table(found: pl.DataFrame) -> pl.DataFrame:
    domains = pl.Enum(found["domain"].unique().sort())
    return found.with_columns(pl.col("domain").cast(domains)).sort("domain", "item_id")

"""Interactions as integers: the form in which a build holds all of them at once. Pure.

An interaction takes 16 bytes (number of its user, number of its item, time), and 5 more if it
comes from an earlier version. The id of each user and item is held once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from corpus.sampling import hashing
from corpus.sampling.sequences import IS_NEW

DomainInteractions = tuple[pl.DataFrame, pl.Series]
"""Interactions of a domain (user, item, timestamp), and the user ids that `user` points into.

The ids that `item` points into are held elsewhere.
"""

COUNT_BATCH_ROWS = 1 << 22
"""Interactions counted at a time, which bounds memory."""


@dataclass(frozen=True)
class EncodedInteractions:
    """Interactions of some users, each of them once.

    Attributes:
        rows: One row per interaction, sorted by user. user and item are row numbers in `users` and
            `items`. timestamp is in seconds since 1970. version is the corpus version that added
            the interaction. split is an index into SPLITS, null for a new interaction.
        users: user_id and user_hash (the hash's 64 bits as int64), sorted by user_hash and user_id.
        items: domain, item_id and item_index, sorted by domain and item_id. domain is an Enum whose
            categories are sorted by name.
    """

    rows: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame

    @classmethod
    def from_frame(cls, interactions: pl.DataFrame) -> "EncodedInteractions":
        """Encodes interactions that name their users and items.

        Args:
            interactions: user_id, domain, item_id, item_index, timestamp, version and split, in
                any order of rows.
        """
        users = _user_table(interactions["user_id"])
        items = _item_table(interactions.select("domain", "item_id", "item_index").unique())
        rows = interactions.select(
            "timestamp",
            "version",
            "split",
            user=encode_values(interactions["user_id"], users["user_id"]),
            item=encode_values(interactions["item_index"], items["item_index"]),
        )
        return cls(
            rows.select("user", "item", "timestamp", "version", "split").sort("user"), users, items
        )

    @classmethod
    def from_domains(
        cls, domains: Sequence[DomainInteractions], items: pl.DataFrame, version: int = 0
    ) -> "EncodedInteractions":
        """Joins the new interactions of several domains.

        Args:
            domains: Interactions of each domain; `item` numbers the rows of `items`.
            items: domain, item_id and item_index of all domains, sorted by domain and item_id.
            version: Corpus version that adds the interactions.
        """
        users = _user_table(pl.concat([user_ids for _, user_ids in domains]))
        rows = [
            interactions.select(
                "item",
                "timestamp",
                user=encode_values(user_ids, users["user_id"]).gather(interactions["user"]),
            )
            for interactions, user_ids in domains
        ]
        constants = {"version": pl.lit(version, pl.Int32), "split": pl.lit(None, pl.Int8)}
        return cls(
            pl.concat(rows).sort("user").select("user", "item", "timestamp", **constants),
            users,
            _item_table(items.select("domain", "item_id", "item_index")),
        )

    @classmethod
    def concat(cls, parts: Sequence["EncodedInteractions"]) -> "EncodedInteractions":
        """Joins parts that number their users and items differently and share no interaction."""
        users = _user_table(pl.concat([part.users["user_id"] for part in parts]))
        # An Enum has the domains of its part only, so parts are compared by the domains' names.
        part_items = [part.items.with_columns(pl.col("domain").cast(pl.String)) for part in parts]
        items = _item_table(pl.concat(part_items).unique())
        rows = []
        for part, own_items in zip(parts, part_items, strict=True):
            user = encode_values(part.users["user_id"], users["user_id"])
            item = encode_values(own_items["item_index"], items["item_index"])
            rows.append(
                part.rows.with_columns(
                    user=user.gather(part.rows["user"]), item=item.gather(part.rows["item"])
                )
            )
        return cls(pl.concat(rows).sort("user"), users, items)

    def filter_users(self, user_ids: pl.Series) -> "EncodedInteractions":
        """Returns the interactions of the given users; ids without interactions are ignored."""
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
        """Returns the interactions with ids and names, in the columns that `from_frame` takes."""
        item_columns = self.items.select(pl.all().gather(self.rows["item"])).with_columns(
            pl.col("domain").cast(pl.String)
        )
        user_id = self.users["user_id"].gather(self.rows["user"])
        decoded = pl.DataFrame([user_id, *item_columns.get_columns()])
        return decoded.hstack(self.rows.select("timestamp", "version", "split").rechunk())

    def select_hash_range(self, index: int, num_ranges: int) -> "EncodedInteractions":
        """Returns the interactions of the users whose hashes are in one of several equal ranges.

        Args:
            index: Index of the range, as `hashing.hash_range_indices` gives it.
            num_ranges: Number of ranges, a power of two.
        """
        width = (1 << 64) // num_ranges
        # Users are sorted by their hash as int64, where the upper half of the hashes is negative
        # and comes first. A range of at most half of all hashes is still contiguous.
        low = (
            int(np.uint64(index * width).view(np.int64))
            if num_ranges > 1
            else int(np.iinfo(np.int64).min)
        )
        hashes = self.users["user_hash"].to_numpy()
        first = int(np.searchsorted(hashes, low))
        stop = int(np.searchsorted(hashes, low + (width - 1), side="right"))
        user = self.rows["user"].to_numpy()
        start, end = np.searchsorted(user, np.array([first, stop], np.uint32))
        rows = self.rows.slice(start, end - start).with_columns(pl.col("user") - first)
        return EncodedInteractions(rows, self.users.slice(first, stop - first), self.items)

    @cached_property
    def num_new(self) -> int:
        """Number of interactions that the version being made adds."""
        return self.rows.height - int(self.rows["split"].count())

    @cached_property
    def user_domain_counts(self) -> pl.DataFrame:
        """Interactions of each user in each domain: user, domain, size, and how many are new."""
        counts = []
        for start in range(0, self.rows.height or 1, COUNT_BATCH_ROWS):
            rows = self.rows.slice(start, COUNT_BATCH_ROWS).select("user", "item", "split")
            by_domain = rows.select(
                "user", "split", domain=self.items["domain"].gather(rows["item"])
            ).group_by("user", "domain")
            counts.append(by_domain.agg(size=pl.len(), new=IS_NEW.sum()))
        # A user whose rows are in two batches has a count in each.
        return (
            pl.concat(counts)
            .group_by("user", "domain")
            .sum()
            .cast({"domain": pl.String, "size": pl.Int64, "new": pl.Int64})
        )

    def count_new_by_domain(self) -> dict[str, tuple[int, int]]:
        """Counts the new interactions of each domain, and the users who had none in it before.

        Counts of separate groups of users add up.
        """
        first_time = (pl.col("new") == pl.col("size")).sum().alias("users")
        counts = self.user_domain_counts.group_by("domain").agg(pl.col("new").sum(), first_time)
        return {name: (interactions, users) for name, interactions, users in counts.iter_rows()}


def mark_as_new(interactions: pl.DataFrame, version: int) -> pl.DataFrame:
    """Adds the columns that mark interactions as new: their version, and a null split.

    Args:
        interactions: user_id, domain, item_id, item_index, timestamp.
        version: Corpus version that adds the interactions.

    Returns:
        A frame for `EncodedInteractions.from_frame`.
    """
    columns = [pl.col(name) for name in ("user_id", "domain", "item_id", "item_index", "timestamp")]
    return interactions.select(
        *columns, version=pl.lit(version, pl.Int32), split=pl.lit(None, pl.Int8)
    )


def encode_values(values: pl.Series, categories: pl.Series) -> pl.Series:
    """Returns the position of each value among unique categories, null for an unknown one [n]."""
    codes = pl.DataFrame(
        {"value": categories, "code": np.arange(categories.len(), dtype=np.uint32)}
    )
    return pl.DataFrame({"value": values}).join(
        codes, on="value", how="left", maintain_order="left"
    )["code"]


def remove_unused_categories(
    codes: pl.Series, categories: pl.Series
) -> tuple[pl.Series, pl.Series]:
    """Removes the categories that no code points to, and renumbers the codes.

    Args:
        codes: Positions among the categories [n].
        categories: Values that the codes stand for.

    Returns:
        Codes into the remaining categories [n].
        The remaining categories, in their old order.
    """
    used = np.flatnonzero(np.bincount(codes.to_numpy()))
    new_code = np.zeros(categories.len(), np.uint32)
    new_code[used] = np.arange(used.size)
    return pl.Series(new_code[codes.to_numpy()]), categories.gather(used)


def _user_table(user_ids: pl.Series) -> pl.DataFrame:
    """Builds `EncodedInteractions.users` from ids that may repeat."""
    unique_ids = user_ids.unique()
    return pl.DataFrame(
        {"user_id": unique_ids, "user_hash": hashing.hash_strings(unique_ids).view(np.int64)}
    ).sort("user_hash", "user_id")


def _item_table(items: pl.DataFrame) -> pl.DataFrame:
    """Builds `EncodedInteractions.items` from unique rows (domain, item_id, item_index)."""
    domains = pl.Enum(items["domain"].unique().sort())
    return items.with_columns(pl.col("domain").cast(domains)).sort("domain", "item_id")

"""Histories of a domain's users, as the corpus has them."""

from collections.abc import Sequence
from typing import Literal

import polars as pl
import pyarrow as pa

from cluster.errors import DataError
from corpus.sampling.sequences import domain_sequences
from corpus.store.delta import open_parquet
from corpus.store.stored_interactions import list_files, read_user_interactions
from corpus.store.tables import Corpus, translate_file_errors
from cprec.downstream.domain import Domain, newest_of_each_user

USERS_PER_READ = 1 << 16
"""Users whose interactions are read at a time."""


def read_histories(
    corpus: Corpus, domain: Domain, as_of: Literal["now", "validation", "test"]
) -> pa.Table:
    """Reads the history of each user of a domain.

    Args:
        corpus: The corpus, at the version that is used.
        domain: The domain.
        as_of: `now`: all interactions of the user, in the order of the corpus's sequences, nothing
            held out. A split: what the user's sample of it has as history and as candidates; the
            newest one, where there are several.

    Returns:
        Columns user_id, history (item indices, oldest first) and, of a split, candidates; sorted by
        user_id, each user once.
    """
    if as_of != "now":
        samples = newest_of_each_user(corpus.read_samples(domain.source, as_of))
        newest = pl.DataFrame(pl.from_arrow(samples)).sort("user_id")
        return newest.select("user_id", "history", "candidates").to_arrow()
    users = read_users(corpus, domain.name)
    parts = [
        _build_histories(corpus, domain.name, users[start : start + USERS_PER_READ])
        for start in range(0, len(users), USERS_PER_READ)
    ]
    return pl.concat(parts).sort("user_id").to_arrow()


def read_user_history(corpus: Corpus, domain: str, user: str) -> list[int]:
    """Reads the history of one user of a domain up to now: item indices, oldest first.

    Raises:
        DataError: The domain has no such user.
    """
    found = _build_histories(corpus, domain, [user])
    if not len(found):
        raise DataError(f"user {user}: no user of {domain} in {corpus.uri}")
    history: list[int] = found["history"][0].to_list()
    return history


def read_users(corpus: Corpus, domain: str) -> list[str]:
    """Returns the users of a domain."""
    users = pl.Series("user_id", [], pl.String)
    for data_file in list_files(corpus):
        with translate_file_errors(data_file.uri):
            rows = open_parquet(data_file.uri).read(["user_id", "domain"], use_threads=False)
        frame = pl.DataFrame(pl.from_arrow(rows)).filter(pl.col("domain").cast(pl.String) == domain)
        users = pl.concat([users, frame["user_id"].cast(pl.String)]).unique()
    return users.sort().to_list()


def _build_histories(corpus: Corpus, domain: str, users: Sequence[str]) -> pl.DataFrame:
    """Builds each user's sequence of items (user_id, history)."""
    interactions = read_user_interactions(corpus, pl.Series("user_id", users, pl.String), {})
    items = interactions.items.with_row_index("item")
    rows = interactions.rows.join(items, on="item").filter(
        pl.col("domain").cast(pl.String) == domain
    )
    sequences = domain_sequences(rows).sort("user", "position")
    return (
        sequences.group_by("user", maintain_order=True)
        .agg(history=pl.col("item_index").cast(pl.Int64))
        .join(interactions.users.with_row_index("user"), on="user")
        .select(pl.col("user_id").cast(pl.String), "history")
    )

"""From the interactions of a version in the making to its written, uncommitted files, in this process.

Users are cut into ranges of their hashes; a range is made into samples at a time, and these lie on the local disk until all of a file are there. So
memory grows with the interactions, as `corpus.sampling.encoded_interactions` keeps them, and not with the samples.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import polars as pl

from cluster.errors import DataError
from corpus.backend import UncommittedSamples
from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.samples import (
    STORED_INTERACTION_SCHEMA,
    Samples,
    build_samples,
    max_sample_counts,
)
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import delta, stored_interactions
from corpus.store.scratch import THREADS, ByteRange, open_scratch_file
from corpus.store.stored_interactions import InteractionFile
from corpus.store.tables import FileKey, split_by_file, write_samples

NamedFile = TypeVar("NamedFile", delta.WrittenFile, InteractionFile)


def write_sample_files(
    interactions: EncodedInteractions,
    item_indices: Mapping[str, IntArray],
    data: DataSettings,
    seed: int,
    uri: str,
) -> UncommittedSamples:
    """Make and write all samples in this process. found, items: as for `corpus.sampling.samples.samples_of`, over all users that have new interactions."""
    bounds, count = (
        max_sample_counts(interactions.user_domain_counts, data),
        stored_interactions.user_range_count(interactions.num_new),
    )
    pieces: dict[FileKey, list[ByteRange]] = {}
    users, dropped = 0, Counter[str]()

    with open_scratch_file() as put_aside, ThreadPoolExecutor(THREADS) as threads:

        def process_range(
            number: int,
        ) -> tuple[Samples, list[tuple[FileKey, ByteRange]], InteractionFile | None]:
            samples = build_samples(
                interactions.select_hash_range(number, count), item_indices, data, seed
            )
            aside = [
                (key, put_aside.write(rows)) for key, rows in split_by_file(samples.tables, bounds)
            ]
            file = (
                stored_interactions.write_interactions(uri, number, count, samples.new_interactions)
                if samples.new_interactions.num_rows
                else None
            )
            return (
                replace(
                    samples, tables={}, new_interactions=STORED_INTERACTION_SCHEMA.empty_table()
                ),
                aside,
                file,
            )

        def write_file(key: FileKey) -> delta.WrittenFile:
            return write_samples(uri, key, [put_aside.read(place) for place in pieces[key]])

        kept_files = []
        for told, aside, file in threads.map(process_range, range(count)):
            users, dropped = users + told.mixed_users, dropped + told.dropped
            kept_files += [file] if file else []
            for key, place in aside:
                pieces.setdefault(key, []).append(place)
        files = list(threads.map(write_file, pieces))
    return UncommittedSamples(sort_by_name(files), sort_by_name(kept_files), users, dropped)


def sort_by_name(files: list[NamedFile]) -> tuple[NamedFile, ...]:
    """Files in the order of their names, whatever the order in which they were made."""
    return tuple(sorted(files, key=lambda file: file.name))


def find_busiest_users(
    interactions: EncodedInteractions, item_counts: Mapping[str, int], negatives: int
) -> pl.DataFrame:
    """domain, user_id, had: of each domain the user with the most items, among those who may leave too few to draw negatives from; by domain.

    sizes: items of each domain; wanted: negatives.
    """
    left = pl.col("domain").replace_strict(dict(item_counts), return_dtype=pl.Int64) - pl.col(
        "size"
    )
    busy = interactions.user_domain_counts.filter(left < negatives).select(
        "user", "domain"
    )  # repeated purchases counted, so some of them leave enough
    rows = interactions.rows.join(busy.select("user").unique(), on="user", how="semi").select(
        "user", "item"
    )
    rows = rows.with_columns(
        domain=interactions.items["domain"].gather(rows["item"]).cast(pl.String)
    )
    had = rows.group_by("domain", "user").agg(had=pl.col("item").n_unique().cast(pl.Int64))
    return select_busiest_per_domain(
        had.with_columns(user_id=interactions.users["user_id"].gather(had["user"])).select(
            "domain", "user_id", "had"
        )
    )


def select_busiest_per_domain(user_item_counts: pl.DataFrame) -> pl.DataFrame:
    """Of each domain the user with the most items, by domain."""
    return (
        user_item_counts.sort("domain", "had", "user_id", descending=[False, True, False])
        .group_by("domain", maintain_order=True)
        .first()
    )


def check_enough_negatives(
    busiest_users: pl.DataFrame, item_counts: Mapping[str, int], negatives: int
) -> None:
    """Every user must leave enough items of each of their domains to draw negatives from. Arguments: of and as for `busiest`. Raises DataError."""
    for domain, user, had in busiest_users.iter_rows():
        left = item_counts[domain] - had
        if left < negatives:
            raise DataError(
                f"{domain}: {item_counts[domain]} items, of which user {user} interacted with {had}: {left} are left, "
                f"{negatives} negatives are wanted; lower data.num_candidates to {left + 1} or less, or drop the domain"
            )

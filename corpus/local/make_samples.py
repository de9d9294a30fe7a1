"""From the interactions of a version in the making to its written, uncommitted files, in this process.

Users are cut into ranges of their hashes; a range is made into samples at a time, and these lie on the local disk until all of a file are there. So
memory grows with the interactions, as `corpus.sampling.encoded_interactions` keeps them, and not with the samples.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import polars as pl

from cluster.errors import DataError
from corpus.sampling.encoded_interactions import Coded
from corpus.sampling.samples import KEPT, Samples, at_most, samples_of
from corpus.sampling.sequences import Ints
from corpus.settings import DataSettings
from corpus.store import delta, stored_interactions
from corpus.store.scratch import Aside, scratch
from corpus.store.stored_interactions import KeptFile
from corpus.store.tables import FileKey, by_file, write_samples

Named = TypeVar("Named", delta.Written, KeptFile)

THREADS = 2
"""Ranges that are made, and files that are written, at a time: what is needed in between grows with it. More is what `corpus.distributed` is for."""


@dataclass(frozen=True)
class Made:
    """Samples and kept interactions that are written but not committed; what statistics need of them."""

    files: tuple[delta.Written, ...]
    kept: tuple[KeptFile, ...]
    mixed_users: int
    dropped: Counter[str]


def make(found: Coded, items: Mapping[str, Ints], data: DataSettings, seed: int, uri: str) -> Made:
    """Make and write all samples in this process. found, items: as for `corpus.sampling.samples.samples_of`, over all users that have new interactions."""
    bounds, count = at_most(found.sizes, data), stored_interactions.parts(found.new)
    pieces: dict[FileKey, list[Aside]] = {}
    users, dropped = 0, Counter[str]()

    with scratch() as put_aside, ThreadPoolExecutor(THREADS) as threads:

        def made(number: int) -> tuple[Samples, list[tuple[FileKey, Aside]], KeptFile | None]:
            samples = samples_of(found.part(number, count), items, data, seed)
            aside = [(key, put_aside.put(rows)) for key, rows in by_file(samples.tables, bounds)]
            file = (
                stored_interactions.write(uri, number, count, samples.kept)
                if samples.kept.num_rows
                else None
            )
            return replace(samples, tables={}, kept=KEPT.empty_table()), aside, file

        def written(key: FileKey) -> delta.Written:
            return write_samples(uri, key, [put_aside.get(place) for place in pieces[key]])

        kept_files = []
        for told, aside, file in threads.map(made, range(count)):
            users, dropped = users + told.mixed_users, dropped + told.dropped
            kept_files += [file] if file else []
            for key, place in aside:
                pieces.setdefault(key, []).append(place)
        files = list(threads.map(written, pieces))
    return Made(by_name(files), by_name(kept_files), users, dropped)


def by_name(files: list[Named]) -> tuple[Named, ...]:
    """Files in the order of their names, whatever the order in which they were made."""
    return tuple(sorted(files, key=lambda file: file.name))


def busiest(found: Coded, sizes: Mapping[str, int], wanted: int) -> pl.DataFrame:
    """domain, user_id, had: of each domain the user with the most items, among those who may leave too few to draw negatives from; by domain.

    sizes: items of each domain; wanted: negatives.
    """
    left = pl.col("domain").replace_strict(dict(sizes), return_dtype=pl.Int64) - pl.col("size")
    busy = found.sizes.filter(left < wanted).select(
        "user", "domain"
    )  # repeated purchases counted, so some of them leave enough
    rows = found.rows.join(busy.select("user").unique(), on="user", how="semi").select(
        "user", "item"
    )
    rows = rows.with_columns(domain=found.items["domain"].gather(rows["item"]).cast(pl.String))
    had = rows.group_by("domain", "user").agg(had=pl.col("item").n_unique().cast(pl.Int64))
    return most(
        had.with_columns(user_id=found.users["user_id"].gather(had["user"])).select(
            "domain", "user_id", "had"
        )
    )


def most(had: pl.DataFrame) -> pl.DataFrame:
    """Of each domain the user with the most items, by domain."""
    return (
        had.sort("domain", "had", "user_id", descending=[False, True, False])
        .group_by("domain", maintain_order=True)
        .first()
    )


def check_negatives(busiest: pl.DataFrame, sizes: Mapping[str, int], wanted: int) -> None:
    """Every user must leave enough items of each of their domains to draw negatives from. Arguments: of and as for `busiest`. Raises DataError."""
    for domain, user, had in busiest.iter_rows():
        left = sizes[domain] - had
        if left < wanted:
            raise DataError(
                f"{domain}: {sizes[domain]} items, of which user {user} interacted with {had}: {left} are left, "
                f"{wanted} negatives are wanted; lower data.num_candidates to {left + 1} or less, or drop the domain"
            )

"""From the interactions of a version in the making to its written, uncommitted files: in this process, or on Ray Data.

Users are cut into ranges of their hashes; a range is made into samples at a time, so that what is needed in between is bounded by its size.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import polars as pl
import pyarrow as pa

from cluster.errors import DataError
from corpus import delta, kept
from corpus.interactions import Say
from corpus.kept import KeptFile
from corpus.samples import at_most, partitioned, samples_of
from corpus.sequences import NEW, Ints
from corpus.settings import DataSettings
from corpus.table import FileKey, by_file, write_samples

Named = TypeVar("Named", delta.Written, KeptFile)


@dataclass(frozen=True)
class Made:
    """Samples and kept interactions that are written but not committed; what statistics need of them."""

    files: tuple[delta.Written, ...]
    kept: tuple[KeptFile, ...]
    mixed_users: int
    dropped: Counter[str]


def make(found: pl.DataFrame, items: Mapping[str, Ints], data: DataSettings, seed: int, uri: str, say: Say) -> Made:
    """Make and write all samples. found, items: as for `corpus.samples.samples_of`, over all users that have new interactions."""
    if found.height > data.distribute_above:
        from corpus import distribute  # only a large build needs Ray

        say(f"{found.height:,} interactions are more than data.distribute_above ({data.distribute_above:,}): building on Ray Data")
        return distribute.make(found, items, data, seed, uri)
    say(f"making samples of {found.height:,} interactions")
    return here(found, items, data, seed, uri)


def here(found: pl.DataFrame, items: Mapping[str, Ints], data: DataSettings, seed: int, uri: str) -> Made:
    """Make and write all samples in this process."""
    bounds, count = at_most(found, data), ranges(found)
    tables: dict[FileKey, list[pa.Table]] = {}
    kept_files: list[KeptFile] = []
    users, dropped = 0, Counter[str]()
    for (number,), part in partitioned(found, count).group_by("partition", maintain_order=True):
        samples = samples_of(part.drop("partition"), items, data, seed)
        for key, rows in by_file(samples.tables, bounds):
            tables.setdefault(key, []).append(rows)
        kept_files += filter(None, [kept.write(uri, int(str(number)), count, samples.kept)])
        users, dropped = users + samples.mixed_users, dropped + samples.dropped
    files = [write_samples(uri, key, tables.pop(key)) for key in sorted(tables, key=lambda key: (key.source, key.split, key.number))]
    return Made(by_name(files), by_name(kept_files), users, dropped)


def ranges(found: pl.DataFrame) -> int:
    """Ranges of users that interactions are made in; it follows from the number of new ones alone."""
    return kept.parts(int(found.select(NEW.sum()).item()))


def by_name(files: list[Named]) -> tuple[Named, ...]:
    """Files in the order of their names, whatever the order in which they were made."""
    return tuple(sorted(files, key=lambda file: file.name))


def check_negatives(interactions: pl.DataFrame, sizes: Mapping[str, int], wanted: int) -> None:
    """Every user must leave enough items of each of their domains to draw negatives from. sizes: items of each domain. Raises DataError."""
    had = interactions.group_by("domain", "user_id").agg(pl.col("item_id").n_unique().alias("had"))
    busiest = had.sort("domain", "had", "user_id", descending=[False, True, False]).group_by("domain", maintain_order=True).first()
    for domain, user, most in busiest.iter_rows():
        if sizes[domain] - most < wanted:
            raise DataError(
                f"{domain}: {sizes[domain]} items, of which user {user} interacted with {most}: {sizes[domain] - most} are left, "
                f"{wanted} negatives are wanted; lower data.num_candidates to {sizes[domain] - most + 1} or less, or drop the domain"
            )

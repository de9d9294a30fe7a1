"""The catalogue: every item of a corpus with its number.

Items are numbered once, without gaps; a number is never changed or reused. The table `items` is
committed before the samples that refer to it. So a build or append that was killed may leave items
that no version of the corpus uses; they are harmless, because no sample refers to them. An append
may use them, if it gives them the same titles. Which items a version has is in the version's own
commit, as runs of numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from cluster import storage
from cluster.errors import CommitConflictError, CorpusError
from corpus.ingest.titles import disambiguate_titles
from corpus.sampling.sequences import IntArray
from corpus.store import delta
from corpus.store.commits import Commit
from corpus.store.tables import ITEMS, ITEMS_SCHEMA, SAMPLES, Corpus, translate_file_errors

IndexRuns = Mapping[str, Sequence[Sequence[int]]]
"""Item indices of each domain, ascending, as runs [first, one past the last]."""


class ItemsMetadata(TypedDict):
    """What a commit of the table `items` says about it.

    Attributes:
        fingerprint: Identity of the build or the append that added the items.
        domains: Domains that the items are of.
        items: Number of items after it, over all domains.
    """

    fingerprint: str
    domains: list[str]
    items: int


def encode_runs(item_indices: Mapping[str, IntArray]) -> dict[str, list[list[int]]]:
    """Returns the item indices of each domain, in any order, as runs."""
    runs = {}
    for domain, indices in item_indices.items():
        ordered = np.sort(indices)
        pieces = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
        runs[domain] = [[int(piece[0]), int(piece[-1]) + 1] for piece in pieces if piece.size]
    return runs


def decode_runs(runs: IndexRuns) -> dict[str, IntArray]:
    """Returns the item indices of each domain, ascending."""
    return {
        domain: np.concatenate(
            [np.arange(first, stop) for first, stop in domain_runs] or [np.arange(0)]
        )
        for domain, domain_runs in runs.items()
    }


def extend_runs(runs: IndexRuns, items: pl.DataFrame) -> dict[str, IntArray]:
    """Returns the item indices of each domain, ascending: of runs, and of items that are added.

    Args:
        runs: Runs of a version.
        items: Items that are added: domain, item_index.
    """
    old = decode_runs(runs)
    new = group_item_indices(items)
    return {
        domain: np.union1d(old.get(domain, np.arange(0)), new.get(domain, np.arange(0)))
        for domain in {**old, **new}
    }


def items_in_runs(items: pl.DataFrame, runs: IndexRuns) -> pl.Series:
    """Tells of each of some items (item_index) whether it is in runs."""
    indices = pl.Series(np.concatenate([np.arange(0), *decode_runs(runs).values()]), dtype=pl.Int64)
    return items["item_index"].is_in(indices.implode())


def group_item_indices(items: pl.DataFrame) -> dict[str, IntArray]:
    """Returns the item indices of each domain, in the order of the rows (domain, item_index)."""
    return {str(name): rows["item_index"].to_numpy() for (name,), rows in items.group_by("domain")}


def count_items(item_indices: Mapping[str, IntArray]) -> dict[str, int]:
    """Returns the number of items of each domain."""
    return {domain: indices.size for domain, indices in item_indices.items()}


def read_domain_items(corpus: Corpus, domains: Iterable[str]) -> pl.DataFrame:
    """Reads the items of some domains in the newest version of a corpus, to append to it.

    Only files that have these domains are read.

    Args:
        corpus: The newest version.
        domains: Domains whose items are read.

    Returns:
        ITEMS_SCHEMA; without what only a killed append has left behind.

    Raises:
        CorpusError: Another build replaced the items, or a file is missing or damaged.
    """
    items = _read_rows(_read_own_commits(corpus), domains)
    return items.filter(_is_used(corpus, items))


def _read_own_commits(corpus: Corpus) -> tuple[Commit, ...]:
    """Reads the commits to the table of items; raises CorpusError if it is another's by now."""
    version = int(corpus.commits[-1].metadata["items_version"])
    commits = delta.read_commits(storage.join(corpus.uri, ITEMS), version)
    if any(commit.removed for commit in commits[version + 1 :]):
        raise CorpusError(
            f"{corpus.uri}: another build replaced the items of this corpus while it was built, "
            "so it can be read but not appended to; build it again elsewhere"
        )
    return commits


def _is_used(corpus: Corpus, items: pl.DataFrame) -> pl.Series:
    """Tells of each of some items whether the version of the corpus has it."""
    return items_in_runs(items, corpus.commits[-1].metadata["item_runs"])


def _read_rows(commits: Sequence[Commit], domains: Iterable[str]) -> pl.DataFrame:
    """Reads the items of some domains that the table has, used or not."""
    domain_set = set(domains)
    items = [pl.DataFrame(ITEMS_SCHEMA.empty_table())]
    live_uris = {file.uri for file in delta.live_files(commits)}
    for commit in commits:
        if domain_set & set(commit.metadata["domains"]):
            items += [
                _read_file(added.file.uri, domain_set)
                for added in commit.added
                if added.file.uri in live_uris
            ]
    return pl.concat(items)


def create_items(uri: str, items: pl.DataFrame, fingerprint: str) -> int:
    """Commits the items of version 0, replacing any that a killed build left.

    Args:
        uri: URI of the corpus.
        items: ITEMS_SCHEMA; row i is item i.
        fingerprint: Identifies the build.

    Returns:
        Version of the table. If the newest version is of the same build, nothing is committed.

    Raises:
        CommitConflictError: Another process committed in the meantime.
    """
    commits = delta.read_commits(storage.join(uri, ITEMS))
    if commits and commits[-1].metadata["fingerprint"] == fingerprint:
        return commits[-1].version
    if delta.read_commits(storage.join(uri, SAMPLES)):
        raise CommitConflictError(
            f"{uri}: another build made version 0 in the meantime; build this corpus elsewhere"
        )
    parent_version = commits[-1].version if commits else None
    return _commit(uri, items, parent_version, fingerprint, items.height, replace=True)


def require_own_items(uri: str, version: int) -> None:
    """Checks that the items of a build are still those of the table.

    Args:
        uri: URI of the corpus.
        version: Version of the table that the build made.

    Raises:
        CommitConflictError: Another build replaced them.
    """
    if delta.read_commits(storage.join(uri, ITEMS), version)[-1].version != version:
        raise CommitConflictError(
            f"{uri}: another build replaced the items in the meantime; let it end, and build this "
            "corpus elsewhere"
        )


@dataclass(frozen=True)
class NumberedItems:
    """The items of an append with their numbers.

    Attributes:
        items: All of them: ITEMS_SCHEMA.
        new: Those that are not in the table yet.
        num_renamed: Number of titles that were changed.
        parent: The newest commit to the table, after which the new ones are numbered.
    """

    items: pl.DataFrame
    new: pl.DataFrame
    num_renamed: int
    parent: Commit


def number_items(corpus: Corpus, items: pl.DataFrame) -> NumberedItems:
    """Numbers the items of an append; writes nothing.

    An item of the corpus keeps its number and its title. Titles of the others are made distinct
    within their domain. Of what a killed append left, an item is used again if its title is the
    same; else it stays unused.

    Args:
        corpus: The newest version.
        items: domain, item_id and title, in the order in which new items are numbered.

    Raises:
        CorpusError: Another build replaced the items, or a file is missing or damaged.
    """
    commits = _read_own_commits(corpus)
    stored = _read_rows(commits, items["domain"].unique())
    is_used = _is_used(corpus, stored)
    known, left = stored.filter(is_used), stored.filter(~is_used)
    unknown = items.join(known, on=["domain", "item_id"], how="anti", maintain_order="left")
    titled, num_renamed = _deduplicate_titles(unknown, known)
    columns = ["domain", "item_id", "title"]
    unnumbered = titled.join(left, on=columns, how="anti", maintain_order="left")
    first = int(commits[-1].metadata["items"])
    index = pl.int_range(first, first + unnumbered.height, dtype=pl.Int64).alias("item_index")
    new = unnumbered.select(index, *columns)
    numbered = [
        known.join(items, on=["domain", "item_id"], how="semi"),
        left.join(titled, on=columns, how="semi"),
        new,
    ]
    return NumberedItems(pl.concat(numbered), new, num_renamed, commits[-1])


def add_items(uri: str, numbered: NumberedItems, fingerprint: str) -> int:
    """Commits the new ones of numbered items.

    Args:
        uri: URI of the corpus.
        numbered: The items.
        fingerprint: Identifies the append.

    Returns:
        Version of the table that has all of them.

    Raises:
        CommitConflictError: Another process committed in the meantime.
    """
    parent, new = numbered.parent, numbered.new
    if new.is_empty():
        return parent.version
    num_items = int(parent.metadata["items"]) + new.height
    return _commit(uri, new, parent.version, fingerprint, num_items, replace=False)


def _commit(
    uri: str,
    items: pl.DataFrame,
    parent_version: int | None,
    fingerprint: str,
    num_items: int,
    *,
    replace: bool,
) -> int:
    """Writes items to one file and commits it; num_items counts all items of the table after it."""
    table_uri = storage.join(uri, ITEMS)
    files = [delta.write_file(table_uri, "part-00000", items.to_arrow().cast(ITEMS_SCHEMA), {})]
    metadata: ItemsMetadata = {
        "fingerprint": fingerprint,
        "domains": sorted(items["domain"].unique()),
        "items": num_items,
    }
    return delta.commit(
        table_uri,
        ITEMS_SCHEMA,
        files,
        parent_version=parent_version,
        replace=replace,
        metadata=metadata,
    )


def _deduplicate_titles(items: pl.DataFrame, known: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Makes titles distinct among the items and the known items of their domain.

    Returns:
        The items, domain by domain.
        Number of titles that were changed.
    """
    renamed = [items.clear()]
    num_renamed = 0
    for (domain,), rows in items.group_by("domain", maintain_order=True):
        known_titles = known.filter(pl.col("domain") == domain)["title"].to_list()
        titles, num_changed = disambiguate_titles(rows["title"].to_list(), known_titles)
        renamed.append(rows.with_columns(title=pl.Series(titles, dtype=pl.String)))
        num_renamed += num_changed
    return pl.concat(renamed), num_renamed


def _read_file(uri: str, domains: set[str]) -> pl.DataFrame:
    """Reads the rows of some domains; skips row groups that can have none of them."""
    with translate_file_errors(uri):
        file = delta.open_parquet(uri)
        column = file.schema_arrow.get_field_index("domain")
        bounds = [
            file.metadata.row_group(group).column(column).statistics
            for group in range(file.metadata.num_row_groups)
        ]
        groups = [
            group
            for group, bound in enumerate(bounds)
            if any(bound.min <= domain <= bound.max for domain in domains)
        ]
        rows: pa.Table = file.read_row_groups(groups, use_threads=False)
    return pl.DataFrame(rows).filter(pl.col("domain").is_in(list(domains)))

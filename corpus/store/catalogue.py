"""The catalogue: every item of a corpus with its number.

Items are numbered once, without gaps; a number is never changed or reused. The table `items` is
committed before the samples that refer to it. So a build or append that was killed may leave items
that no version of the corpus uses; they are harmless, because no sample refers to them. Which items
a version has is in the version's own commit, as runs of numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from cluster import storage
from corpus.ingest.titles import disambiguate_titles
from corpus.sampling.sequences import IntArray
from corpus.store import delta
from corpus.store.commits import Commit
from corpus.store.tables import ITEMS, ITEMS_SCHEMA, translate_file_errors

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


def extend_runs(runs: IndexRuns, items: pl.DataFrame) -> dict[str, list[list[int]]]:
    """Adds items (domain, item_index) to runs; returns the runs of all domains."""
    old = decode_runs(runs)
    new = group_item_indices(items)
    return encode_runs(
        {
            domain: np.union1d(old.get(domain, np.arange(0)), new.get(domain, np.arange(0)))
            for domain in {**old, **new}
        }
    )


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


def read_domain_items(uri: str, domains: Iterable[str]) -> pl.DataFrame:
    """Reads the items of some domains: item_index, domain, item_id, title.

    Only files that have these domains are read. Items that no version of the corpus uses are
    included.

    Args:
        uri: URI of the corpus.
        domains: Domains whose items are read.
    """
    return _read_domain_items(_read_commits(uri), domains)


def _read_domain_items(commits: Sequence[Commit], domains: Iterable[str]) -> pl.DataFrame:
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
    commits = _read_commits(uri)
    if commits and commits[-1].metadata["fingerprint"] == fingerprint:
        return commits[-1].version
    parent_version = commits[-1].version if commits else None
    return _commit(uri, items, parent_version, fingerprint, items.height, replace=True)


def add_items(uri: str, items: pl.DataFrame, fingerprint: str) -> tuple[pl.DataFrame, int, int]:
    """Numbers the items that have no number yet, and commits them.

    An item that has a number keeps its title. Titles of the others are made distinct within their
    domain.

    Args:
        uri: URI of the corpus.
        items: domain, item_id and title, in the order in which new items are numbered.
        fingerprint: Identifies the append.

    Returns:
        All of the items with their numbers: ITEMS_SCHEMA.
        Version of the table that has them.
        Number of titles that were changed.

    Raises:
        CommitConflictError: Another process committed in the meantime.
    """
    commits = _read_commits(uri)
    known, new_items, num_renamed = _number_items(commits, items)
    version = commits[-1].version
    if new_items.height:
        stop = int(commits[-1].metadata["items"]) + new_items.height
        version = _commit(uri, new_items, version, fingerprint, stop, replace=False)
    return _select_items(items, known, new_items), version, num_renamed


def preview_items(uri: str, items: pl.DataFrame) -> pl.DataFrame:
    """Returns items (domain, item_id) with the numbers that `add_items` would give them."""
    known, new_items, _ = _number_items(_read_commits(uri), items)
    return _select_items(items, known, new_items)


def _number_items(
    commits: Sequence[Commit], items: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Numbers the items that have no number yet.

    Returns:
        All known items of the same domains; the new ones with their numbers, both ITEMS_SCHEMA; and
        the number of titles that were changed.
    """
    known = _read_domain_items(commits, items["domain"].unique())
    unnumbered = items.join(known, on=["domain", "item_id"], how="anti", maintain_order="left")
    new_items, num_renamed = _deduplicate_titles(unnumbered, known)
    first = int(commits[-1].metadata["items"])
    index = pl.int_range(first, first + new_items.height, dtype=pl.Int64).alias("item_index")
    return known, new_items.select(index, "domain", "item_id", "title"), num_renamed


def _select_items(items: pl.DataFrame, *numbered: pl.DataFrame) -> pl.DataFrame:
    """Returns the rows of numbered items that are among some items (domain, item_id)."""
    return pl.concat(numbered).join(items, on=["domain", "item_id"], how="semi")


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


def _read_commits(uri: str) -> tuple[Commit, ...]:
    return delta.read_commits(storage.join(uri, ITEMS))


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

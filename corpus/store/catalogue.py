"""The items of a corpus: numbered once, densely; a number is never changed or reused.

The table `items` is committed before the samples that point into it. Items that a commit holds beyond the newest version of the corpus are harmless:
they have a number and a title, and no sample names them. Which items a version knows is told in its own commit, as runs of numbers.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from cluster import storage
from corpus.ingest.titles import disambiguate_titles
from corpus.sampling.sequences import IntArray
from corpus.store import delta
from corpus.store.tables import ITEMS, ITEMS_SCHEMA, translate_file_errors

IndexRuns = Mapping[str, Sequence[Sequence[int]]]
"""Item indices of each domain, ascending, as [first, one past the last]."""


def encode_runs(item_indices: Mapping[str, IntArray]) -> dict[str, list[list[int]]]:
    """Indices of each domain as runs. items: domain to its item indices, in any order."""
    found = {}
    for domain, indices in item_indices.items():
        ordered = np.sort(indices)
        pieces = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
        found[domain] = [[int(piece[0]), int(piece[-1]) + 1] for piece in pieces if piece.size]
    return found


def decode_runs(runs: IndexRuns) -> dict[str, IntArray]:
    """The item indices of each domain, ascending."""
    return {
        domain: np.concatenate([np.arange(first, stop) for first, stop in of] or [np.arange(0)])
        for domain, of in runs.items()
    }


def extend_runs(runs: IndexRuns, items: pl.DataFrame) -> dict[str, list[list[int]]]:
    """Runs with more items: domain, item_index."""
    more = {str(name): rows["item_index"].to_numpy() for (name,), rows in items.group_by("domain")}
    there = decode_runs(runs)
    return encode_runs(
        {
            name: np.union1d(there.get(name, np.arange(0)), more.get(name, np.arange(0)))
            for name in {**there, **more}
        }
    )


def group_item_indices(items: pl.DataFrame) -> dict[str, IntArray]:
    """Item indices of each domain, ascending."""
    return {str(name): rows["item_index"].to_numpy() for (name,), rows in items.group_by("domain")}


def count_items(item_indices: Mapping[str, IntArray]) -> dict[str, int]:
    """Items of each domain."""
    return {domain: indices.size for domain, indices in item_indices.items()}


def read_domain_items(uri: str, domains: Iterable[str]) -> pl.DataFrame:
    """Every item that has a number in some domains: item_index, domain, item_id, title. Reads the files that hold these domains only."""
    return _read_domain_items(_read_commits(uri), domains)


def _read_domain_items(commits: Sequence[delta.Commit], domains: Iterable[str]) -> pl.DataFrame:
    wanted = set(domains)
    found = [pl.DataFrame(ITEMS_SCHEMA.empty_table())]
    live = {part.uri for part in delta.live_files(commits)}
    for commit in commits:
        if wanted & set(commit.metadata["domains"]):
            found += [
                _read_file(added.file.uri, wanted)
                for added in commit.added
                if added.file.uri in live
            ]
    return pl.concat(found)


def create_items(uri: str, items: pl.DataFrame, fingerprint: str) -> int:
    """The version of the table that holds exactly these items, whose row i is item i. It may be one that a killed build left; others are replaced."""
    before = _read_commits(uri)
    if before and before[-1].metadata["fingerprint"] == fingerprint:
        return before[-1].version
    return _commit(
        uri, items, before[-1].version if before else None, fingerprint, items.height, replace=True
    )


def add_items(uri: str, items: pl.DataFrame, fingerprint: str) -> tuple[pl.DataFrame, int, int]:
    """Give every item a number, committing those that have none. Returns the items with theirs, the version of the table, and titles made distinct.

    items: domain, item_id, title, in the order in which they are to be numbered. Titles become distinct within their domain, and an item that has a
    number keeps its title. Raises Overtaken if another process committed in the meantime.
    """
    before = _read_commits(uri)
    known = _read_domain_items(before, items["domain"].unique())
    fresh, renamed = _deduplicate_titles(
        items.join(known, on=["domain", "item_id"], how="anti", maintain_order="left"), known
    )
    first = int(before[-1].metadata["items"])
    numbered = fresh.select(
        pl.int_range(first, first + fresh.height, dtype=pl.Int64).alias("item_index"),
        "domain",
        "item_id",
        "title",
    )
    version = before[-1].version
    if fresh.height:
        version = _commit(uri, numbered, version, fingerprint, first + fresh.height, replace=False)
    return (
        pl.concat([known, numbered]).join(items, on=["domain", "item_id"], how="semi"),
        version,
        renamed,
    )


def _commit(
    uri: str,
    items: pl.DataFrame,
    parent_version: int | None,
    fingerprint: str,
    total: int,
    *,
    replace: bool,
) -> int:
    place = storage.join(uri, ITEMS)
    files = [delta.write_file(place, "part-00000", items.to_arrow().cast(ITEMS_SCHEMA), {})]
    told = {"fingerprint": fingerprint, "domains": sorted(items["domain"].unique()), "items": total}
    return delta.commit(
        place, ITEMS_SCHEMA, files, parent_version=parent_version, replace=replace, metadata=told
    )


def _read_commits(uri: str) -> tuple[delta.Commit, ...]:
    return delta.read_commits(storage.join(uri, ITEMS))


def _deduplicate_titles(items: pl.DataFrame, known: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Items whose titles are distinct within their domain and from those known in it; and how many were changed."""
    made, renamed = [items.clear()], 0
    for (domain,), rows in items.group_by("domain", maintain_order=True):
        there = known.filter(pl.col("domain") == domain)["title"]
        titles, changed = disambiguate_titles(rows["title"].to_list(), there.to_list())
        made.append(rows.with_columns(title=pl.Series(titles, dtype=pl.String)))
        renamed += changed
    return pl.concat(made), renamed


def _read_file(uri: str, domains: set[str]) -> pl.DataFrame:
    with translate_file_errors(uri):
        file = delta.open_parquet(uri)
        column = file.schema_arrow.get_field_index("domain")
        bounds = [
            file.metadata.row_group(i).column(column).statistics
            for i in range(file.metadata.num_row_groups)
        ]
        groups = [
            i
            for i, of in enumerate(bounds)
            if any(of.min <= domain <= of.max for domain in domains)
        ]
        rows: pa.Table = file.read_row_groups(groups)
    return pl.DataFrame(rows).filter(pl.col("domain").is_in(list(domains)))

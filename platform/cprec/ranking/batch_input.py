"""What a batch ranks: one row per user, checked, and the rows that cannot be used with why.

A row is never dropped without a word: it is in the input, or among the rejected rows.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from cluster.storage_errors import is_storage_error
from corpus.ingest.sources.folders import list_parts
from corpus.ingest.titles import clean_title
from corpus.store.delta import open_parquet
from cprec.ranking.items import ItemLookup
from cprec.ranking.ranker import MIN_CANDIDATES

PARQUET = ".parquet"
ID_COLUMNS = ("history", "candidates")
TITLE_COLUMNS = ("history_titles", "candidates_titles")
"""Columns of a file with histories, by item ids or by titles."""


@dataclass(frozen=True)
class Rejected:
    """A row of the input that cannot be ranked.

    Attributes:
        file: File of the row, or the corpus.
        row: Number of the row in its file, from 1; 0 where it is not known.
        user_id: User of the row, as text; empty if there is none.
        reason: Why, in a word that is counted.
        detail: What was seen.
    """

    file: str
    row: int
    user_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class BatchInput:
    """The rows that can be ranked, sorted by user.

    Attributes:
        rows: Columns user_id, history and, if they are given, candidates: lists of item indices, or
            of titles. Each user once.
        are_titles: Whether they are titles.
        rejected: The other rows.
    """

    rows: pa.Table
    are_titles: bool
    rejected: tuple[Rejected, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of rejected rows by reason."""
        return dict(sorted(Counter(row.reason for row in self.rejected).items()))

    @property
    def digest(self) -> str:
        """Digest of the rows; equal rows, equal digest."""
        digest = hashlib.sha256()
        for batch in self.rows.combine_chunks().to_batches(max_chunksize=1 << 16):
            digest.update(repr(batch.to_pydict()).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class RowRules:
    """How a row is checked.

    Attributes:
        items: Items that ids are of; None: rows have titles.
        with_candidates: Whether each row must have candidates.
        max_history: Items of a history that are used, at most: the newest.
        exclude_history: Whether candidates that are in the history are left out.
        are_indices: Whether rows have item indices already, as those of the corpus have.
    """

    items: ItemLookup | None
    with_candidates: bool
    max_history: int
    exclude_history: bool
    are_indices: bool = False

    def check(self, history: Any, candidates: Any) -> tuple[list[Any], list[Any] | None]:
        """Returns history and candidates of a row as they are ranked.

        Where candidates are still to be found, the history is whole: what was bought long ago is
        not recommended either.

        Raises:
            UnusableRow: They cannot be ranked.
        """
        whole = self._look_up(history, "history")
        if not whole:
            raise UnusableRow("empty_history", "the history is empty")
        if not self.with_candidates:
            return whole, None
        if candidates is None:
            raise UnusableRow("no_candidates", "the row has no candidates")
        # An item that is named twice is ranked once.
        given = list(dict.fromkeys(self._look_up(candidates, "candidates")))
        seen = set(whole) if self.exclude_history else set()
        left = [item for item in given if item not in seen]
        if len(left) < MIN_CANDIDATES:
            raise UnusableRow(
                "too_few_candidates",
                f"{len(given)} candidates, {len(left)} of them not in the history; a ranking "
                f"takes {MIN_CANDIDATES}",
            )
        return whole[-self.max_history :], left

    def _look_up(self, values: Sequence[Any] | None, column: str) -> list[Any]:
        """Returns the index of each item, or each title cleaned."""
        if values is None:
            values = []
        if self.are_indices:
            return list(values)
        if any(value is None for value in values):
            raise UnusableRow("missing_item", f"{column} has a null")
        if self.items is None:
            titles = [clean_title(str(value)) for value in values]
            if "" in titles:
                raise UnusableRow("empty_title", f"{column} has an empty title")
            return titles
        index_of_id = self.items.index_of_id
        if unknown := [str(value) for value in values if str(value) not in index_of_id]:
            raise UnusableRow(
                "unknown_item", f"{column}: {unknown[0]!r} is no item of {self.items.domain.name}"
            )
        return [index_of_id[str(value)] for value in values]


class UnusableRow(Exception):
    """Says why a row cannot be ranked: a reason and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def read_files(uri: str, rules: RowRules, are_titles: bool) -> BatchInput:
    """Reads and checks histories from a parquet file, or from all of a folder.

    Of several rows of one user that can be used, the first counts.

    Args:
        uri: The file or folder.
        rules: How a row is checked.
        are_titles: Whether the columns have titles (`uses_titles`).

    Raises:
        DataError: There is no such file, or no usable row in it.
    """
    ranked: dict[str, tuple[list[Any], list[Any] | None]] = {}
    rejected = []
    for file, row, values in _iter_rows(uri, TITLE_COLUMNS if are_titles else ID_COLUMNS):
        if values is None:
            rejected.append(Rejected(file, row, "", "not_utf8", "a text of the row is no UTF-8"))
            continue
        user, history, candidates = values
        name = "" if user is None else str(user)
        try:
            if not name:
                raise UnusableRow("missing_user", "user_id is null or empty")
            checked = rules.check(history, candidates)
            if name in ranked:
                raise UnusableRow("duplicate_user", "another row of this user is used")
            ranked[name] = checked
        except UnusableRow as error:
            rejected.append(Rejected(file, row, name, error.reason, error.detail))
    return _build(ranked, are_titles, rules.with_candidates, rejected, uri)


def from_corpus(histories: pa.Table, rules: RowRules, uri: str) -> BatchInput:
    """Checks histories of the corpus (`cprec.ranking.histories`), which are item indices.

    Args:
        histories: Columns user_id, history and, of a split, candidates.
        rules: How a row is checked.
        uri: The corpus, for messages.

    Raises:
        DataError: No row can be used.
    """
    by_index = replace(rules, are_indices=True)
    ranked: dict[str, tuple[list[Any], list[Any] | None]] = {}
    rejected = []
    for row, values in enumerate(histories.to_pylist(), 1):
        try:
            ranked[values["user_id"]] = by_index.check(values["history"], values.get("candidates"))
        except UnusableRow as error:
            rejected.append(Rejected(uri, row, values["user_id"], error.reason, error.detail))
    return _build(ranked, False, rules.with_candidates, rejected, uri)


def uses_titles(uri: str) -> bool:
    """Returns whether a file, or the first of a folder, has titles and not item ids.

    Raises:
        DataError: There is no such file, or it has neither column of histories.
    """
    file = list_parquet(uri)[0]
    names = _open(file).schema_arrow.names
    if "user_id" not in names or not {ID_COLUMNS[0], TITLE_COLUMNS[0]} & set(names):
        raise DataError(
            f"recommend.histories: {file} has the columns {', '.join(names)}; it needs user_id, "
            f"and {ID_COLUMNS[0]} (item ids) or {TITLE_COLUMNS[0]}"
        )
    return ID_COLUMNS[0] not in names


def list_parquet(uri: str) -> list[str]:
    """Lists the parquet files of a file, or of a folder with its partition folders, sorted.

    Raises:
        DataError: There are none, or there is something else that may be data.
    """
    names = storage.list_names(uri)
    if not names:
        raise DataError(f"recommend.histories: {uri}: no parquet file here")
    # A folder may be named like a file.
    if uri.endswith(PARQUET) and names == [uri.rsplit("/", 1)[-1]]:
        return [uri]
    try:
        return list_parts(uri, [PARQUET])
    except DataError as error:
        raise DataError(f"recommend.histories: {error}") from None


def _iter_rows(
    uri: str, columns: tuple[str, str]
) -> Iterator[tuple[str, int, tuple[Any, ...] | None]]:
    """Yields (file, number of the row, (user, history, candidates)) of all rows.

    A row whose text is no UTF-8 has None in place of its values.
    """
    for file in list_parquet(uri):
        parquet = _open(file)
        names = parquet.schema_arrow.names
        wanted = ("user_id", *columns)
        if missing := [name for name in wanted[:2] if name not in names]:
            raise DataError(
                f"recommend.histories: {file} has no column {', '.join(missing)}; it has "
                f"{', '.join(names)}"
            )
        _check_types(file, parquet.schema_arrow, wanted)
        row = 0
        for group in range(parquet.num_row_groups):
            read = [name for name in wanted if name in names]
            with _damage_named(file):
                table = parquet.read_row_group(group, columns=read, use_threads=False)
            for values in _to_rows(table):
                row += 1
                found = None if values is None else tuple(values.get(name) for name in wanted)
                yield file, row, found


def _to_rows(table: pa.Table) -> Iterator[dict[str, Any] | None]:
    """Yields the rows of a table; None for a row whose text is no UTF-8: Arrow does not check."""
    try:
        yield from table.to_pylist()
    except UnicodeDecodeError:
        for number in range(len(table)):
            try:
                (row,) = table.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                row = None
            yield row


def _check_types(file: str, schema: pa.Schema, wanted: Sequence[str]) -> None:
    """Raises DataError if a column cannot hold what it should: ids, or lists of them."""
    for name in wanted:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        value = kind
        if name != "user_id":
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            value = kind.value_type if is_list else None
        is_id = value is not None and (
            pa.types.is_string(value)
            or pa.types.is_large_string(value)
            or pa.types.is_integer(value)
            or pa.types.is_null(value)
        )
        if not is_id:
            what = "strings or integers" if name == "user_id" else "lists of strings or integers"
            raise DataError(f"recommend.histories: {file}: column {name} is {kind}, not {what}")


def _open(file: str) -> pq.ParquetFile:
    """Opens a parquet file; raises DataError if it is missing or not a parquet file."""
    with _damage_named(file):
        return open_parquet(file)


@contextmanager
def _damage_named(file: str) -> Iterator[None]:
    """Turns errors about a missing or damaged file into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if is_storage_error(error) and not isinstance(error, FileNotFoundError):
            raise
        raise DataError(
            f"recommend.histories: {file}: no parquet file, or a damaged one ({error})"
        ) from None


def _build(
    ranked: Mapping[str, tuple[list[Any], list[Any] | None]],
    are_titles: bool,
    with_candidates: bool,
    rejected: Sequence[Rejected],
    uri: str,
) -> BatchInput:
    """Builds the input of checked rows, sorted by user."""
    if not ranked:
        first = f"; first: {rejected[0]}" if rejected else ""
        raise DataError(f"{uri}: no row can be ranked, of {len(rejected):,}{first}")
    users = sorted(ranked)
    list_type = pa.list_(pa.string() if are_titles else pa.int64())
    columns = {
        "user_id": pa.array(users, pa.string()),
        "history": pa.array([ranked[user][0] for user in users], list_type),
    }
    if with_candidates:
        columns["candidates"] = pa.array([ranked[user][1] for user in users], list_type)
    return BatchInput(pa.table(columns), are_titles, tuple(rejected))

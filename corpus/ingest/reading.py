"""The files of a domain to its interactions and items, as they are there.

Where they lie and what their columns are called is told by `data.format` (`corpus.ingest.sources`). What is wrong with a file is told by file and column.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import DataError
from cluster.say import Say
from corpus.ingest import quarantine
from corpus.ingest.quarantine import Quarantined
from corpus.ingest.sources import block, files, layout
from corpus.ingest.sources.block import Block
from corpus.ingest.sources.file_splits import Piece
from corpus.ingest.titles import clean_title
from corpus.settings import DataSettings

_TOLD_TITLE = 100
"""Characters of a title that cannot be used, at most, as it is told."""


@dataclass(frozen=True)
class Raw:
    """Interactions of a domain as they were read, with numbers for ids.

    rows: user, item (uint32: rows of users and item_ids; null where there is none), timestamp (in the unit of the files), rating if it is wanted;
    users, item_ids: every name once; files: how many of the rows each has, in their order; malformed: rows that could not be read [n], None where
    all could; odd: by row, the first of what could not be read, as it stands there: the line of a malformed one, else the time.
    """

    rows: pl.DataFrame
    users: pl.Series
    item_ids: pl.Series
    files: Mapping[str, int]
    malformed: NDArray[np.bool_] | None
    odd: Mapping[int, str]

    def values(self, row: int) -> dict[str, object]:
        """What there is to tell of a row."""
        if self.malformed is not None and self.malformed[row]:
            return {"line": self.odd.get(row, "")}
        user, item, timestamp = (self.rows[name][row] for name in ("user", "item", "timestamp"))
        of_user, of_item = (
            None if number is None else names[number]
            for names, number in ((self.users, user), (self.item_ids, item))
        )
        return {"user_id": of_user, "item_id": of_item, "timestamp": self.odd.get(row, timestamp)}


@dataclass(frozen=True)
class Items:
    """The items of a domain.

    titles: item_id, title of those that have one, each once, by item_id; dropped: what else is left out, by reason; quarantined: what is no use.
    """

    titles: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]

    @property
    def left_out(self) -> Counter[str]:
        """All that was left out, by reason."""
        return self.dropped + quarantine.counts(self.quarantined)


def read(data: DataSettings, domain: str, say: Say) -> tuple[Raw, Items]:
    """Read one domain, all of its files. Raises DataError naming file and column."""
    of_interactions, of_items = layout.files(data, domain)
    wanted = columns_of(data)
    found = [
        (file, read_block)
        for file in of_interactions
        for read_block in blocks(Piece(file), wanted, data)
    ]
    agree([told(file, read_block) for file, read_block in found], wanted, data, say)
    return coded(found), read_items(data, domain, of_items, say)


def coded(found: Sequence[tuple[str, Block]]) -> Raw:
    """Blocks of files, in their order, with numbers for ids."""
    table = pa.concat_tables([read.table for _, read in found])
    (users, names_of_users), (items, names_of_items) = (
        _numbers(table[name]) for name in ("user_id", "item_id")
    )
    columns = {
        "user": users,
        "item": items,
        "timestamp": pl.Series(table["timestamp"], dtype=pl.Int64),
    }
    more = {"rating": pl.Series(table["rating"])} if "rating" in table.column_names else {}
    heights: Counter[str] = Counter()
    odd: dict[int, str] = {}
    masks = []
    for file, read in found:
        odd |= {heights.total() + row: text for row, text in read.odd.items()}
        heights[file] += read.table.num_rows
        masks.append(
            np.zeros(read.table.num_rows, bool) if read.malformed is None else read.malformed
        )
    malformed = (
        np.concatenate(masks) if any(read.malformed is not None for _, read in found) else None
    )
    return Raw(
        pl.DataFrame(columns | more), names_of_users, names_of_items, heights, malformed, odd
    )


def _numbers(ids: pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """Text [n] as numbers, null where it is, and what each stands for."""
    numbered = ids.dictionary_encode().combine_chunks()
    return pl.Series(numbered.indices, dtype=pl.UInt32), pl.Series(
        numbered.dictionary, dtype=pl.String
    )


def columns_of(data: DataSettings) -> tuple[str, ...]:
    """The columns of interactions that are wanted, by our names."""
    return (
        "user_id",
        "item_id",
        "timestamp",
        *(("rating",) if data.min_rating is not None else ()),
    )


def blocks(piece: Piece, wanted: Sequence[str], data: DataSettings) -> Iterable[Block]:
    """The wanted columns of a file or a piece of one, in blocks."""
    chosen = layout.of(data)
    return files.blocks(
        piece, {name: chosen.columns[name] for name in wanted}, layout.UNITS[chosen.unit]
    )


@dataclass(frozen=True)
class Told:
    """What of a block its file is judged by. types: of its columns in the file; valued: columns with a value; rows: how many."""

    file: str
    types: Mapping[str, str]
    valued: frozenset[str]
    rows: int


def told(file: str, read: Block) -> Told:
    """What of a block of a file that file is judged by."""
    return Told(file, read.types, read.valued, read.table.num_rows)


def agree(found: Sequence[Told], wanted: Sequence[str], data: DataSettings, say: Say) -> None:
    """Files of a domain must agree on the types of their columns, and files of lines must have these. Raises DataError naming one that does not."""
    columns = layout.of(data).columns
    for of in found[1:]:
        for name in wanted:
            if ("string" in found[0].types[name]) != ("string" in of.types[name]):
                raise DataError(
                    f"{of.file}: column {columns[name]} is {of.types[name]}, yet {found[0].types[name]} in {found[0].file}; "
                    "give all files of a domain one type"
                )
    of_lines: dict[str, list[Told]] = {}
    for of in found:
        if files.of_lines(of.file):
            of_lines.setdefault(of.file, []).append(of)
    for file, whole in of_lines.items():
        if not sum(of.rows for of in whole):
            raise DataError(
                f"{file}: holds no line of JSON; write it again, or correct data.format"
            )
        for name in wanted:
            if not any(name in of.valued for of in whole):
                raise DataError(
                    f"{file}: no line has a field {columns[name]}; correct data.format, or data.columns"
                )
    for name in wanted:
        if block.KINDS[name] == block.IDS and "int" in found[0].types[name]:
            say(f"{found[0].file}: integers of column {columns[name]} are read as text")


def read_items(data: DataSettings, domain: str, of: Sequence[str], say: Say) -> Items:
    """The items of a domain that have a title. Of what else is in the files a block at a time is held."""
    wanted = ("item_id", "title")
    found, quarantined, of_blocks = [], [], []
    for file in of:
        for read_block in blocks(Piece(file), wanted, data):
            titles, bad = _titles(domain, file, read_block)
            found.append(titles)
            quarantined.append((bad, file, read_block.table.num_rows))
            of_blocks.append(told(file, read_block))
    agree(of_blocks, wanted, data, say)
    every = pl.concat(found).sort("item_id", "title")
    once_each = every.unique("item_id", keep="first", maintain_order=True)
    return Items(
        once_each,
        Counter(duplicate_item=every.height - once_each.height),
        quarantine.joined(quarantined),
    )


def _titles(domain: str, file: str, read: Block) -> tuple[pl.DataFrame, tuple[Quarantined, ...]]:
    """The items of a block of a file that have a title, cleaned; and the rows that cannot be used."""
    raw, faults = pl.DataFrame(read.table), {"item_without_id": _blank("item_id")}

    def values(row: int) -> dict[str, object]:
        if read.malformed is not None and read.malformed[row]:
            return {"line": read.odd.get(row, "")}
        return {"item_id": raw["item_id"][row], "title": (raw["title"][row] or "")[:_TOLD_TITLE]}

    fault = quarantine.first_fault(raw, faults, read.malformed)
    found = quarantine.of_rows(domain, {file: raw.height}, faults, fault, values)
    good = raw.filter(fault == 0)
    titles = good["title"].unique()
    once_cleaned = pl.DataFrame(
        {
            "title": titles,
            "cleaned": pl.Series([clean_title(title or "") for title in titles], dtype=pl.String),
        }
    )
    made = good.join(once_cleaned, on="title", how="left", nulls_equal=True).select(
        "item_id", title="cleaned"
    )
    return made.filter(pl.col("title") != ""), found


def _blank(column: str) -> pl.Expr:
    return pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")

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

from cluster.console import Say
from cluster.errors import DataError
from corpus.ingest import quarantine
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.sources import block, layout, reader
from corpus.ingest.sources.block import Block
from corpus.ingest.sources.file_splits import FileSplit
from corpus.ingest.titles import clean_title
from corpus.settings import DataSettings

_MAX_TITLE_CHARS = 100
"""Characters of a title that cannot be used, at most, as it is told."""


@dataclass(frozen=True)
class RawInteractions:
    """Interactions of a domain as they were read, with numbers for ids.

    rows: user, item (uint32: rows of users and item_ids; null where there is none), timestamp (in the unit of the files), rating if it is wanted;
    users, item_ids: every name once; files: how many of the rows each has, in their order; malformed: rows that could not be read [n], None where
    all could; odd: by row, the first of what could not be read, as it stands there: the line of a malformed one, else the time.
    """

    rows: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    rows_per_file: Mapping[str, int]
    malformed: NDArray[np.bool_] | None
    unparsed_text: Mapping[int, str]

    def row_values(self, row: int) -> dict[str, object]:
        """What there is to tell of a row."""
        if self.malformed is not None and self.malformed[row]:
            return {"line": self.unparsed_text.get(row, "")}
        user, item, timestamp = (self.rows[name][row] for name in ("user", "item", "timestamp"))
        of_user, of_item = (
            None if number is None else names[number]
            for names, number in ((self.user_ids, user), (self.item_ids, item))
        )
        return {
            "user_id": of_user,
            "item_id": of_item,
            "timestamp": self.unparsed_text.get(row, timestamp),
        }


@dataclass(frozen=True)
class DomainItems:
    """The items of a domain.

    titles: item_id, title of those that have one, each once, by item_id; dropped: what else is left out, by reason; quarantined: what is no use.
    """

    titles: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]

    @property
    def dropped_and_quarantined(self) -> Counter[str]:
        """All that was left out, by reason."""
        return self.dropped + quarantine.count_by_reason(self.quarantined)


def read_domain(data: DataSettings, domain: str, say: Say) -> tuple[RawInteractions, DomainItems]:
    """Read one domain, all of its files. Raises DataError naming file and column."""
    of_interactions, of_items = layout.find_files(data, domain)
    wanted = interaction_columns(data)
    found = [
        (file, read_block)
        for file in of_interactions
        for read_block in read_blocks(FileSplit(file), wanted, data)
    ]
    check_files_agree(
        [summarize_block(file, read_block) for file, read_block in found], wanted, data, say
    )
    return encode_blocks(found), read_items(data, domain, of_items, say)


def encode_blocks(blocks: Sequence[tuple[str, Block]]) -> RawInteractions:
    """Blocks of files, in their order, with numbers for ids."""
    table = pa.concat_tables([read.table for _, read in blocks])
    (users, names_of_users), (items, names_of_items) = (
        _encode_ids(table[name]) for name in ("user_id", "item_id")
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
    for file, read in blocks:
        odd |= {heights.total() + row: text for row, text in read.unparsed_text.items()}
        heights[file] += read.table.num_rows
        masks.append(
            np.zeros(read.table.num_rows, bool) if read.malformed is None else read.malformed
        )
    malformed = (
        np.concatenate(masks) if any(read.malformed is not None for _, read in blocks) else None
    )
    return RawInteractions(
        pl.DataFrame(columns | more), names_of_users, names_of_items, heights, malformed, odd
    )


def _encode_ids(ids: pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """Text [n] as numbers, null where it is, and what each stands for."""
    numbered = ids.dictionary_encode().combine_chunks()
    return pl.Series(numbered.indices, dtype=pl.UInt32), pl.Series(
        numbered.dictionary, dtype=pl.String
    )


def interaction_columns(data: DataSettings) -> tuple[str, ...]:
    """The columns of interactions that are wanted, by our names."""
    return (
        "user_id",
        "item_id",
        "timestamp",
        *(("rating",) if data.min_rating is not None else ()),
    )


def read_blocks(
    file_split: FileSplit, wanted_columns: Sequence[str], data: DataSettings
) -> Iterable[Block]:
    """The wanted columns of a file or a piece of one, in blocks."""
    chosen = layout.from_settings(data)
    return reader.read_blocks(
        file_split,
        {name: chosen.columns[name] for name in wanted_columns},
        layout.TICKS_PER_SECOND[chosen.time_unit],
    )


@dataclass(frozen=True)
class BlockSummary:
    """What of a block its file is judged by. types: of its columns in the file; valued: columns with a value; rows: how many."""

    file: str
    file_types: Mapping[str, str]
    columns_with_values: frozenset[str]
    rows: int


def summarize_block(file: str, file_block: Block) -> BlockSummary:
    """What of a block of a file that file is judged by."""
    return BlockSummary(
        file, file_block.file_types, file_block.columns_with_values, file_block.table.num_rows
    )


def check_files_agree(
    summaries: Sequence[BlockSummary], wanted_columns: Sequence[str], data: DataSettings, say: Say
) -> None:
    """Files of a domain must agree on the types of their columns, and files of lines must have these. Raises DataError naming one that does not."""
    columns = layout.from_settings(data).columns
    for of in summaries[1:]:
        for name in wanted_columns:
            if ("string" in summaries[0].file_types[name]) != ("string" in of.file_types[name]):
                raise DataError(
                    f"{of.file}: column {columns[name]} is {of.file_types[name]}, yet {summaries[0].file_types[name]} in {summaries[0].file}; "
                    "give all files of a domain one type"
                )
    of_lines: dict[str, list[BlockSummary]] = {}
    for of in summaries:
        if reader.is_json_lines(of.file):
            of_lines.setdefault(of.file, []).append(of)
    for file, whole in of_lines.items():
        if not sum(of.rows for of in whole):
            raise DataError(
                f"{file}: holds no line of JSON; write it again, or correct data.format"
            )
        for name in wanted_columns:
            if not any(name in of.columns_with_values for of in whole):
                raise DataError(
                    f"{file}: no line has a field {columns[name]}; correct data.format, or data.columns"
                )
    for name in wanted_columns:
        if block.COLUMN_KINDS[name] == block.IDS and "int" in summaries[0].file_types[name]:
            say(f"{summaries[0].file}: integers of column {columns[name]} are read as text")


def read_items(data: DataSettings, domain: str, item_files: Sequence[str], say: Say) -> DomainItems:
    """The items of a domain that have a title. Of what else is in the files a block at a time is held."""
    wanted = ("item_id", "title")
    found, quarantined, of_blocks = [], [], []
    for file in item_files:
        for read_block in read_blocks(FileSplit(file), wanted, data):
            titles, bad = _clean_items(domain, file, read_block)
            found.append(titles)
            quarantined.append((bad, file, read_block.table.num_rows))
            of_blocks.append(summarize_block(file, read_block))
    check_files_agree(of_blocks, wanted, data, say)
    every = pl.concat(found).sort("item_id", "title")
    once_each = every.unique("item_id", keep="first", maintain_order=True)
    return DomainItems(
        once_each,
        Counter(duplicate_item=every.height - once_each.height),
        quarantine.merge_blocks(quarantined),
    )


def _clean_items(
    domain: str, file: str, file_block: Block
) -> tuple[pl.DataFrame, tuple[QuarantinedRows, ...]]:
    """The items of a block of a file that have a title, cleaned; and the rows that cannot be used."""
    raw, faults = pl.DataFrame(file_block.table), {"item_without_id": _is_blank("item_id")}

    def values(row: int) -> dict[str, object]:
        if file_block.malformed is not None and file_block.malformed[row]:
            return {"line": file_block.unparsed_text.get(row, "")}
        return {
            "item_id": raw["item_id"][row],
            "title": (raw["title"][row] or "")[:_MAX_TITLE_CHARS],
        }

    fault = quarantine.first_fault_codes(raw, faults, file_block.malformed)
    found = quarantine.collect_faulty_rows(domain, {file: raw.height}, faults, fault, values)
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


def _is_blank(column: str) -> pl.Expr:
    return pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")

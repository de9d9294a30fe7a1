"""Reads the interactions and items of a domain from their files.

`corpus.ingest.sources` finds and reads the files as `data.format` says. Interactions are returned
as they are in the files, faulty rows included; `corpus.ingest.cleaning` selects the usable ones.
Errors name the file and the column.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from cluster.console import Say
from corpus.ingest import data_roots, prompt_injection, quarantine
from corpus.ingest.file_checks import check_files_agree, summarize_block
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.sources import layout, reader
from corpus.ingest.sources.block import Block
from corpus.ingest.sources.file_splits import FileSplit
from corpus.ingest.sources.text_values import is_no_id
from corpus.ingest.title_text import extract_text
from corpus.ingest.titles import clean_title
from corpus.settings import DataSettings

_MAX_TITLE_CHARS = 100
"""Maximum characters to record of the title of a quarantined row."""


@dataclass(frozen=True)
class RawInteractions:
    """Interactions of a domain as they are in the files, with integers in place of ids.

    Attributes:
        rows: Columns user and item (uint32 indices into `user_ids` and `item_ids`, null where there
            is no id), timestamp (int64, in the unit of the files), and rating if it is read [n].
        user_ids: Every user id once.
        item_ids: Every item id once.
        rows_per_file: Number of rows of each file, in the order of the rows.
        malformed: Which rows could not be read [n]; None if all could be.
        unparsed_text: For the first few rows of each block with unreadable text, that text: the
            whole line of a malformed row, else the time.
    """

    rows: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    rows_per_file: Mapping[str, int]
    malformed: NDArray[np.bool_] | None
    unparsed_text: Mapping[int, str]

    def row_values(self, row: int) -> dict[str, object]:
        """Returns what the quarantine records of a row: its line if malformed, else its values."""
        if self.malformed is not None and self.malformed[row]:
            return {"line": self.unparsed_text.get(row, "")}
        user, item, timestamp = (self.rows[name][row] for name in ("user", "item", "timestamp"))
        return {
            "user_id": None if user is None else self.user_ids[user],
            "item_id": None if item is None else self.item_ids[item],
            "timestamp": self.unparsed_text.get(row, timestamp),
        }


@dataclass(frozen=True)
class DomainItems:
    """The items of a domain.

    Attributes:
        titles: Columns item_id and title of the items with a title, each once, sorted by item_id.
        dropped_ids: Ids of the items that `data.prompt_injection` drops.
        dropped: Usable rows that were left out, counted by reason.
        quarantined: Rows that cannot be used.
    """

    titles: pl.DataFrame
    dropped_ids: pl.Series
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]

    @property
    def dropped_and_quarantined(self) -> Counter[str]:
        """All rows that were left out, counted by reason."""
        return self.dropped + quarantine.count_by_reason(self.quarantined)


def read_domain(data: DataSettings, domain: str, say: Say) -> tuple[RawInteractions, DomainItems]:
    """Reads all files of one domain.

    Raises:
        DataError: A file or a column is missing or unreadable; the message names it.
    """
    data = data_roots.at_root(data, domain)
    interaction_files, item_files = layout.find_files(data, domain)
    columns = interaction_columns(data)
    blocks = [
        (file, file_block)
        for file in interaction_files
        for file_block in read_blocks(FileSplit(file), columns, data)
    ]
    check_files_agree(
        [summarize_block(file, file_block) for file, file_block in blocks], columns, data, say
    )
    return encode_blocks(blocks), read_items(data, domain, item_files, say)


def encode_blocks(blocks: Sequence[tuple[str, Block]]) -> RawInteractions:
    """Concatenates blocks of interactions and replaces their ids by integers.

    Args:
        blocks: Each block with its file, in order.
    """
    table = pa.concat_tables([file_block.table for _, file_block in blocks])
    user, user_ids = _encode_ids(table["user_id"])
    item, item_ids = _encode_ids(table["item_id"])
    columns = {
        "user": user,
        "item": item,
        "timestamp": pl.Series(table["timestamp"], dtype=pl.Int64),
    }
    if "rating" in table.column_names:
        columns["rating"] = pl.Series(table["rating"])
    rows_per_file: Counter[str] = Counter()
    unparsed_text: dict[int, str] = {}
    masks = []
    for file, file_block in blocks:
        num_rows = file_block.table.num_rows
        first_row = rows_per_file.total()
        unparsed_text |= {first_row + row: text for row, text in file_block.unparsed_text.items()}
        rows_per_file[file] += num_rows
        masks.append(
            np.zeros(num_rows, bool) if file_block.malformed is None else file_block.malformed
        )
    any_malformed = any(file_block.malformed is not None for _, file_block in blocks)
    return RawInteractions(
        pl.DataFrame(columns),
        user_ids,
        item_ids,
        rows_per_file,
        np.concatenate(masks) if any_malformed else None,
        unparsed_text,
    )


def _encode_ids(ids: pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """Returns for each id [n] its index in the distinct ids, null for null; and these ids."""
    encoded = ids.dictionary_encode().combine_chunks()
    return (
        pl.Series(encoded.indices, dtype=pl.UInt32),
        pl.Series(encoded.dictionary, dtype=pl.String),
    )


def interaction_columns(data: DataSettings) -> tuple[str, ...]:
    """Returns the columns of interactions that the settings need, by our names."""
    return (
        "user_id",
        "item_id",
        "timestamp",
        *(("rating",) if data.min_rating is not None else ()),
    )


def read_blocks(
    file_split: FileSplit, wanted_columns: Sequence[str], data: DataSettings
) -> Iterable[Block]:
    """Yields columns of a file, or of a part of one, in blocks.

    Args:
        file_split: The file, and which part of it to read.
        wanted_columns: Columns to read, by our names.
        data: Says what these columns are called in the file.
    """
    data_layout = layout.from_settings(data)
    blocks = reader.read_blocks(
        file_split,
        {name: data_layout.columns[name] for name in wanted_columns},
        layout.TICKS_PER_SECOND[data_layout.time_unit],
    )
    if data.platform is None or "user_id" not in wanted_columns:
        return blocks
    return (_name_platform(file_block, data.platform) for file_block in blocks)


def _name_platform(file_block: Block, platform: str) -> Block:
    """Returns a block whose user ids start with their platform, except those that are none."""
    position = file_block.table.column_names.index("user_id")
    encoded = file_block.table["user_id"].dictionary_encode().combine_chunks()
    distinct = pl.Series("user_id", encoded.dictionary, dtype=pl.String)
    named = pl.select(
        pl.when(is_no_id(distinct)).then(distinct).otherwise(pl.lit(f"{platform}/") + distinct)
    ).to_series()
    table = file_block.table.set_column(
        position, "user_id", named.to_arrow().cast(pa.string()).take(encoded.indices)
    )
    return replace(file_block, table=table)


def read_items(data: DataSettings, domain: str, item_files: Sequence[str], say: Say) -> DomainItems:
    """Reads the items of a domain that have a title.

    An item that occurs several times gets its alphabetically first title. Without files, there are
    none.

    Raises:
        DataError: A file or a column is missing or unreadable; the message names it.
    """
    columns = ("item_id", "title")
    titles = [pl.DataFrame(schema={"item_id": pl.String, "title": pl.String})]
    quarantined = []
    summaries = []
    for file in item_files:
        for file_block in read_blocks(FileSplit(file), columns, data):
            block_titles, block_quarantined = _clean_items(domain, file, file_block)
            titles.append(block_titles)
            quarantined.append((block_quarantined, file, file_block.table.num_rows))
            summaries.append(summarize_block(file, file_block))
    if item_files:
        check_files_agree(summaries, columns, data, say)
    all_titles = pl.concat(titles).sort("item_id", "title")
    unique_titles = all_titles.unique("item_id", keep="first", maintain_order=True)
    treated = prompt_injection.apply_setting(unique_titles["title"], data.prompt_injection)
    is_dropped = treated.is_null()
    return DomainItems(
        unique_titles.with_columns(title=treated).filter(~is_dropped),
        unique_titles["item_id"].filter(is_dropped),
        Counter(
            duplicate_item=all_titles.height - unique_titles.height,
            title_with_injection=int(is_dropped.sum()),
            title_neutralised=int((treated != unique_titles["title"]).sum()),
        ),
        quarantine.merge_blocks(quarantined),
    )


def _clean_items(
    domain: str, file: str, file_block: Block
) -> tuple[pl.DataFrame, tuple[QuarantinedRows, ...]]:
    """Returns item_id and clean title of a block's items, and its rows that cannot be used.

    Items whose clean title is empty are left out; they are not faulty.
    """
    raw = pl.DataFrame(file_block.table)
    # Titles repeat, and cleaning is slow: clean each distinct title once.
    distinct = raw["title"].unique()
    texts = [extract_text(title or "") for title in distinct]
    cleaned_titles = pl.DataFrame(
        {
            "title": distinct,
            "has_no_text": pl.Series(
                [
                    not text and bool((title or "").strip())
                    for title, text in zip(distinct, texts, strict=True)
                ],
                dtype=pl.Boolean,
            ),
            "cleaned": pl.Series([clean_title(text) for text in texts], dtype=pl.String),
        }
    )
    raw = raw.join(cleaned_titles, on="title", how="left", nulls_equal=True, maintain_order="left")
    faults = {
        "item_without_id": pl.lit(is_no_id(raw["item_id"])),
        "title_is_no_text": pl.col("has_no_text"),
    }

    def row_values(row: int) -> dict[str, object]:
        if file_block.malformed is not None and file_block.malformed[row]:
            return {"line": file_block.unparsed_text.get(row, "")}
        return {
            "item_id": raw["item_id"][row],
            "title": (raw["title"][row] or "")[:_MAX_TITLE_CHARS],
        }

    fault_codes = quarantine.first_fault_codes(raw, faults, file_block.malformed)
    quarantined = quarantine.collect_faulty_rows(
        domain, {file: raw.height}, faults, fault_codes, row_values
    )
    usable = raw.filter(fault_codes == 0)
    items = usable.select("item_id", title="cleaned")
    return items.filter(pl.col("title") != ""), quarantined

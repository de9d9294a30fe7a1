"""Makes blocks of columns that were read as text."""

from collections.abc import Mapping
from itertools import islice

import numpy as np
import polars as pl
import pyarrow as pa

from corpus.ingest.sources.block import ARROW_TYPES, COLUMN_KINDS, IDS, NUMBER, TIME, Block
from corpus.ingest.sources.text_values import parse_ids, parse_times

MAX_UNPARSED = 5
"""Maximum malformed lines, and maximum unreadable times, that a block keeps to show."""
MAX_LINE_CHARS = 200
"""Maximum characters to keep of a malformed line."""


def excerpt(line: str, num_before: int) -> str:
    """Returns what to keep of a malformed line: its beginning, or nothing after the first few.

    Args:
        line: The line.
        num_before: Malformed lines before it in the block.
    """
    return line[:MAX_LINE_CHARS] if num_before < MAX_UNPARSED else ""


def block_from_text(
    raw: pl.DataFrame, malformed: Mapping[int, str], ticks_per_second: int
) -> Block:
    """Converts columns of text to their types; text that is not a number or a time becomes null.

    Args:
        raw: Our columns, as text [rows].
        malformed: Text of each malformed row, by row number.
        ticks_per_second: Ticks of a time in a second.
    """
    typed = raw.with_columns(
        _convert(raw[name], COLUMN_KINDS[name], ticks_per_second) for name in raw.columns
    )
    unparsed_text = dict(islice(malformed.items(), MAX_UNPARSED))
    if "timestamp" in raw.columns:
        is_unparsed = typed["timestamp"].is_null() & raw["timestamp"].is_not_null()
        unparsed_rows = is_unparsed.arg_true().head(MAX_UNPARSED)
        times = raw["timestamp"].gather(unparsed_rows)
        unparsed_text |= dict(zip(unparsed_rows.to_list(), times.to_list(), strict=True))
    is_malformed = None
    if malformed:
        is_malformed = np.zeros(raw.height, bool)
        is_malformed[list(malformed)] = True
    table = typed.to_arrow().cast(
        pa.schema([(name, ARROW_TYPES[COLUMN_KINDS[name]]) for name in raw.columns])
    )
    return Block(table, dict.fromkeys(raw.columns, "string"), is_malformed, unparsed_text)


def _convert(text: pl.Series, kind: str, ticks_per_second: int) -> pl.Series:
    """Converts a column of text to the type of its kind."""
    if kind == TIME:
        return parse_times(text, ticks_per_second)
    if kind == IDS:
        return parse_ids(text)
    return text.cast(pl.Float64, strict=False) if kind == NUMBER else text

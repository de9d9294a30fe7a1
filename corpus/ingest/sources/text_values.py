"""Reads values that are text: times, numbers, ids, and the words that tools write for none."""

import ast
import json
import re
from decimal import Decimal

import polars as pl

MISSING_VALUES = frozenset(
    {
        *("nan", "NaN", "NaT", "None", "<NA>"),  # Python and pandas
        *("null", "NULL", "\\N"),  # JSON, SQL, MySQL
        *("NA", "N/A", "n/a", "#N/A"),  # R and spreadsheets
        *("undefined", "__HIVE_DEFAULT_PARTITION__"),  # JavaScript, Hive
    }
)
"""What tools write for a missing value, as it stands in a file: "none" and "Nan" are not in it."""

TIME_FORMS = "integers, whole numbers such as 1500000000.0, or dates such as 2017-07-14T02:40:00Z"
"""The times that can be read, as error messages say it."""

_DATE_TIME = re.compile(
    r"^(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:[T ] *(?P<minutes>\d\d:\d\d)(?::(?P<seconds>\d\d)(?:[.,]\d+)?)?"
    r" *(?:Z|z|UTC|GMT|(?P<hours>[+-]\d\d)(?::?(?P<rest>\d\d))?)?)?$"
)
"""An ISO 8601 date, with or without a time, a fraction of a second, and a zone."""
_DATE_LIKE_UNIX = "%a %b %d %H:%M:%S %z %Y"
"""A date as the Unix command `date` writes it, with a zone offset: Fri Jul 14 02:40:00 +0000 2017.

Goodreads and Twitter export this form.
"""
_SCIENTIFIC = re.compile(r"^([+-]?\d)(?:\.(\d*))?[eE]\+?(\d{1,2})$")
_LOST_DIGITS = r"^\d(\.\d+)?[eE]\+\d+$"
"""An id that was once written as a floating-point number, so that others may be the same now."""


def parse_times(text: pl.Series, ticks_per_second: int) -> pl.Series:
    """Returns times as integers (int64); null for text that is no time.

    A number counts in ticks, and its fraction is cut off. A date without a zone is in UTC.

    Args:
        text: The times as text [rows].
        ticks_per_second: Ticks of a number in a second.
    """
    ticks = text.cast(pl.Int64, strict=False)
    is_open = ticks.is_null() & text.is_not_null()
    if not is_open.any():
        return ticks
    distinct = text.filter(is_open).unique()
    parsed = _parse_forms(distinct.str.strip_chars(), ticks_per_second)
    rest = text.replace_strict(distinct, parsed, default=None, return_dtype=pl.Int64)
    return ticks.fill_null(rest)


def _parse_forms(text: pl.Series, ticks_per_second: int) -> pl.Series:
    """Returns distinct times as integers, for `parse_times`; null for text that is no time."""
    numbers = text.str.extract(r"^([+-]?\d+)(?:\.\d*)?$").cast(pl.Int64, strict=False)
    scientific = pl.Series([_parse_scientific(value) for value in text], dtype=pl.Int64)
    parts = text.str.extract_groups(_DATE_TIME.pattern).struct.unnest()
    iso = parts.select(
        pl.format(
            "{}T{}:{}{}{}",
            "date",
            pl.col("minutes").fill_null("00:00"),
            pl.col("seconds").fill_null("00"),
            pl.col("hours").fill_null("+00"),
            pl.col("rest").fill_null("00"),
        )
    ).to_series()
    seconds = (
        iso.str.to_datetime("%Y-%m-%dT%H:%M:%S%z", strict=False)
        .dt.epoch("s")
        .fill_null(text.str.to_datetime(_DATE_LIKE_UNIX, strict=False).dt.epoch("s"))
    )
    return numbers.fill_null(scientific).fill_null(to_ticks(seconds, ticks_per_second))


def to_ticks(seconds: pl.Series, ticks_per_second: int) -> pl.Series:
    """Returns times in seconds (int64) as ticks (int64).

    A time that has too many ticks for int64 becomes the most or the least, which is as implausible.
    """
    most = (2**63 - 1) // ticks_per_second
    return seconds.clip(-most, most) * ticks_per_second


def _parse_scientific(text: str) -> int | None:
    """Returns a number such as 1.5000000001e+09, unless digits before the point are lost."""
    match = _SCIENTIFIC.match(text)
    if match is None or len(match[2] or "") < int(match[3]) or int(match[3]) > 18:
        return None
    return int(Decimal(text))


def parse_ids(text: pl.Series) -> pl.Series:
    """Returns ids as they are in other files: 1.0, which pandas makes of 1, becomes 1."""
    if not text.str.ends_with(".0").any():
        return text
    return text.str.replace(r"^(-?\d+)\.0$", "${1}")


def is_no_id(ids: pl.Series) -> pl.Series:
    """Tests which ids stand for none, or for more than one thing.

    These are white space, `MISSING_VALUES`, lists and objects of JSON, and floating-point numbers.
    """
    stripped = ids.str.strip_chars()
    is_nested = pl.Series(
        [value is not None and is_list_or_object(value) for value in stripped], dtype=pl.Boolean
    )
    return (
        (stripped == "")
        | stripped.is_in(list(MISSING_VALUES))
        | stripped.str.contains(_LOST_DIGITS)
        | is_nested
    ).fill_null(True)


def is_list_or_object(text: str) -> bool:
    """Tests whether text is a list or an object in JSON or Python."""
    return isinstance(parse_literal(text), list | dict)


def parse_literal(text: str) -> object:
    """Reads a list or an object written in JSON or Python; None if the text is neither."""
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return None
    for reader in (json.loads, ast.literal_eval):
        try:
            return reader(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None

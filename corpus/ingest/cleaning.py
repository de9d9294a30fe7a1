"""Raw interactions of a domain (`corpus.ingest.raw_data`) to those that can be used; each is judged by itself.

Rows that cannot be used are left out, counted by reason and told by file and row (`corpus.ingest.quarantine`).
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from cluster.errors import DataError
from corpus.ingest import quarantine
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.raw_data import RawInteractions
from corpus.ingest.sources import layout
from corpus.ingest.titles import disambiguate_titles
from corpus.sampling.encoded_interactions import encode_values
from corpus.settings import DataSettings

SECONDS_PER_DAY = 86_400

_WRONG_UNIT_FACTOR = 20
"""A time that is this many times too small or too large for its unit is one of another unit."""


@dataclass(frozen=True)
class UsableInteractions:
    """Interactions of one domain that can be used.

    interactions: user, item (uint32: rows of users and item_ids), timestamp (int64 unix seconds); users: every name once, those of rows that were
    left out among them; item_ids: of all items with a title, ascending; dropped: what else was left out, by reason; quarantined: what cannot be used.
    """

    interactions: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]

    @property
    def dropped_and_quarantined(self) -> Counter[str]:
        """All that was left out, by reason."""
        return self.dropped + quarantine.count_by_reason(self.quarantined)


def select_usable(
    domain: str, raw: RawInteractions, titled_item_ids: pl.Series, data: DataSettings, latest: int
) -> UsableInteractions:
    """What can be used of the rows that were read; each is judged by itself.

    titled: ids of items with a title, ascending; at_latest: unix seconds.
    """
    place = encode_values(raw.item_ids, titled_item_ids)
    rows = raw.rows.with_columns(place=place.gather(raw.rows["item"]))
    ticks = layout.TICKS_PER_SECOND[layout.from_settings(data).time_unit]
    faults = {
        **_timestamp_faults(ticks, latest),
        "no_user_id": _missing_id("user", raw.user_ids),
        "no_item_id": _missing_id("item", raw.item_ids),
        "item_without_title": pl.col("place").is_null(),
    }
    good, quarantined = _separate_faulty_rows(domain, rows, faults, raw)
    liked, dropped = _filter_by_rating(good, data.min_rating)
    found = liked.select("user", item="place", timestamp=pl.col("timestamp") // ticks)
    return UsableInteractions(found, raw.user_ids, titled_item_ids, dropped, quarantined)


def clean_interactions(
    domain: str, raw: RawInteractions, titled_item_ids: pl.Series, data: DataSettings
) -> UsableInteractions:
    """What can be used of a domain, as `usable` says, each interaction once, no user with more than `data.max_per_user`.

    Raises DataError when too many rows of the domain cannot be used.
    """
    found = select_usable(domain, raw, titled_item_ids, data, latest_valid_timestamp(data))
    check_quarantined_fraction(
        domain, found.quarantined, found.interactions.height + found.dropped.total(), data
    )
    rows, repeated = deduplicate_and_cap(found.interactions, data.max_per_user)
    return replace(found, interactions=rows, dropped=found.dropped + repeated)


def deduplicate_and_cap(rows: pl.DataFrame, max_per_user: int) -> tuple[pl.DataFrame, Counter[str]]:
    """Each interaction once, and of every user the most recent ones, at most so many; and how many were left out. Items are numbered by their ids.

    All interactions of a user have to be there; of users that are not there nothing is needed.
    """
    unique = rows.unique()
    capped = _cap_per_user(unique, max_per_user)
    return capped, Counter(
        duplicate_interaction=rows.height - unique.height,
        over_user_cap=unique.height - capped.height,
    )


def latest_valid_timestamp(data: DataSettings) -> int:
    """Unix seconds after which a time is no use."""
    return data.latest if data.latest is not None else int(time.time()) + SECONDS_PER_DAY


def disambiguate_item_titles(items: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Items of one domain with titles made distinct, in the order of item_id; and how many titles were changed."""
    ordered = items.sort("item_id")
    titles, changed = disambiguate_titles(ordered["title"].to_list())
    return ordered.with_columns(title=pl.Series(titles, dtype=pl.String)), changed


def _timestamp_faults(ticks_per_second: int, latest: int) -> dict[str, pl.Expr]:
    """Rows whose time is none, by reason. ticks: of the times in a second; latest: in unix seconds.

    A unit that is a thousand times too fine or too coarse is told from a time that is merely wrong: it says what to correct.
    """
    tick = pl.col("timestamp")
    return {
        "no_timestamp": tick.is_null(),
        "timestamp_in_finer_unit": tick >= _WRONG_UNIT_FACTOR * latest * ticks_per_second,
        "timestamp_in_future": tick > latest * ticks_per_second,
        "timestamp_in_coarser_unit": (ticks_per_second > 1)
        & (tick >= 0)
        & (tick < latest * ticks_per_second // (_WRONG_UNIT_FACTOR * _WRONG_UNIT_FACTOR)),
        "timestamp_before_1970": tick < 0,
    }


def _filter_by_rating(
    rows: pl.DataFrame, min_rating: float | None
) -> tuple[pl.DataFrame, Counter[str]]:
    """Interactions with a rating of at least so much; all, where none is asked for."""
    if min_rating is None:
        return rows, Counter()
    kept = rows.filter(pl.col("rating").fill_nan(None) >= min_rating).drop("rating")
    return kept, Counter(below_min_rating=rows.height - kept.height)


def _cap_per_user(rows: pl.DataFrame, max_per_user: int) -> pl.DataFrame:
    """The most recent interactions of every user, at most so many; ties by item."""
    counts = np.bincount(rows["user"].to_numpy())
    if counts.max(initial=0) <= max_per_user:
        return rows
    busy = (pl.Series(counts) > max_per_user).gather(rows["user"])
    recent = pl.struct("timestamp", "item").rank("ordinal", descending=True).over("user")
    return pl.concat([rows.filter(~busy), rows.filter(busy).filter(recent <= max_per_user)])


def _separate_faulty_rows(
    domain: str, rows: pl.DataFrame, faults: Mapping[str, pl.Expr], raw: RawInteractions
) -> tuple[pl.DataFrame, tuple[QuarantinedRows, ...]]:
    """Rows without any fault; and the others, by the first fault that they have."""
    fault = quarantine.first_fault_codes(rows, faults, raw.malformed)
    if not (fault > 0).any():
        return rows, ()
    return rows.filter(fault == 0), quarantine.collect_faulty_rows(
        domain, raw.rows_per_file, faults, fault, raw.row_values
    )


def _missing_id(column: str, ids: pl.Series) -> pl.Expr:
    """Whether a row's number stands for no name, or none is there."""
    blank = (ids.str.strip_chars() == "").arg_true().cast(pl.UInt32)
    return pl.col(column).is_null() | pl.col(column).is_in(blank.implode())


def check_quarantined_fraction(
    domain: str, quarantined: Sequence[QuarantinedRows], num_usable: int, data: DataSettings
) -> None:
    """Raises DataError if a larger share of a domain's rows than allowed cannot be used. others: the rows that can."""
    reasons = quarantine.count_by_reason(quarantined)
    bad, rows = reasons.total(), num_usable + reasons.total()
    if bad > data.max_quarantined * rows:
        unit = reasons["timestamp_in_finer_unit"] or reasons["timestamp_in_coarser_unit"]
        told = "".join(f"\n  {line}" for line in quarantine.summary_lines(quarantined))
        raise DataError(
            f"{domain}: {bad:,} of {rows:,} interactions cannot be used, which is more than data.max_quarantined ({data.max_quarantined:.0%}); "
            f"correct the data{', set data.time_unit' if unit else ''}, or raise the key{told}"
        )

"""Selects the usable interactions of a domain from what `corpus.ingest.raw_data` read.

Rows that cannot be used are quarantined: left out, counted by reason, and recorded with file and
row (`corpus.ingest.quarantine`). Usable rows that are not wanted are dropped: only counted.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from cluster.errors import DataError
from corpus.ingest import quarantine
from corpus.ingest.file_checks import count_times
from corpus.ingest.quarantine import QuarantinedRows
from corpus.ingest.raw_data import RawInteractions
from corpus.ingest.sources import layout
from corpus.ingest.sources.text_values import TIME_FORMS, is_no_id
from corpus.ingest.titles import disambiguate_titles
from corpus.sampling.encoded_interactions import encode_values
from corpus.settings import SECONDS_PER_DAY, DataSettings, day_start

_WRONG_UNIT_FACTOR = 20
"""A time that is this many times later than the latest plausible one is in another unit."""


@dataclass(frozen=True)
class UsableInteractions:
    """The usable interactions of one domain.

    Attributes:
        interactions: Columns user and item (uint32 indices into `user_ids` and `item_ids`) and
            timestamp (int64, Unix seconds) [n].
        user_ids: Every user id once, including users all of whose rows were left out.
        item_ids: Ids of all items with a title, ascending.
        dropped: Usable rows that were left out, counted by reason.
        quarantined: Rows that cannot be used.
    """

    interactions: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    dropped: Counter[str]
    quarantined: tuple[QuarantinedRows, ...]

    @property
    def dropped_and_quarantined(self) -> Counter[str]:
        """All rows that were left out, counted by reason."""
        return self.dropped + quarantine.count_by_reason(self.quarantined)


def select_usable(
    domain: str,
    raw: RawInteractions,
    titled_item_ids: pl.Series,
    data: DataSettings,
    latest: int,
    *,
    dropped_item_ids: pl.Series | None = None,
    zero_is_missing: bool = False,
) -> UsableInteractions:
    """Selects the rows that can be used, judging each row by itself.

    So any part of a domain may be passed; `deduplicate_and_cap` needs all rows of a user.

    Args:
        domain: Name of the domain.
        raw: The rows that were read.
        titled_item_ids: Ids of the items with a title, ascending.
        data: The settings to judge by.
        latest: Latest plausible time [Unix seconds].
        dropped_item_ids: Ids of items whose rows are dropped without a quarantine entry, unless
            the item is among `titled_item_ids`.
        zero_is_missing: Whether the time 0 stands for none (`file_checks.is_zero_missing`).
    """
    # `raw` numbers items as they occur in the files; from here on, an item is numbered by its
    # position in `titled_item_ids`, null without a title.
    titled_item = encode_values(raw.item_ids, titled_item_ids)
    if dropped_item_ids is None:
        dropped_item_ids = pl.Series(dtype=pl.String)
    dropped_item = titled_item.is_null() & raw.item_ids.is_in(dropped_item_ids.implode())
    rows = raw.rows.with_columns(
        titled_item=titled_item.gather(raw.rows["item"]),
        is_dropped=dropped_item.gather(raw.rows["item"]).fill_null(value=False),
    )
    ticks = layout.TICKS_PER_SECOND[layout.from_settings(data).time_unit]
    faults = {
        **_timestamp_faults(ticks, latest, zero_is_missing),
        "no_user_id": _missing_id("user", raw.user_ids),
        "no_item_id": _missing_id("item", raw.item_ids),
        "item_without_title": pl.col("titled_item").is_null() & ~pl.col("is_dropped"),
    }
    usable, quarantined = _separate_faulty_rows(domain, rows, faults, raw)
    wanted = usable.filter(~pl.col("is_dropped"))
    early = wanted
    if data.until_day is not None:
        end = day_start(data.until_day) + SECONDS_PER_DAY
        early = wanted.filter(pl.col("timestamp") < end * ticks)
    liked, dropped = _filter_by_rating(early, data.min_rating)
    dropped["item_with_injection"] = usable.height - wanted.height
    dropped["after_until_day"] = wanted.height - early.height
    interactions = liked.select("user", item="titled_item", timestamp=pl.col("timestamp") // ticks)
    return UsableInteractions(interactions, raw.user_ids, titled_item_ids, dropped, quarantined)


def clean_interactions(
    domain: str,
    raw: RawInteractions,
    titled_item_ids: pl.Series,
    data: DataSettings,
    faulty_items: Sequence[QuarantinedRows] = (),
    dropped_item_ids: pl.Series | None = None,
) -> UsableInteractions:
    """Selects the usable interactions of a whole domain, without duplicates and capped per user.

    Arguments as for `select_usable`, and `faulty_items` as for `check_quarantined_fraction`.

    Raises:
        DataError: More rows than `data.max_quarantined` allows cannot be used.
    """
    ticks = layout.TICKS_PER_SECOND[layout.from_settings(data).time_unit]
    usable = select_usable(
        domain,
        raw,
        titled_item_ids,
        data,
        latest_valid_timestamp(data),
        dropped_item_ids=dropped_item_ids,
        zero_is_missing=count_times(raw.rows["timestamp"]).is_zero_missing(ticks),
    )
    check_quarantined_fraction(
        domain,
        usable.quarantined,
        usable.interactions.height + usable.dropped.total(),
        data,
        titled_item_ids,
        faulty_items,
    )
    interactions, dropped = deduplicate_and_cap(usable.interactions, data.max_per_user)
    return replace(usable, interactions=interactions, dropped=usable.dropped + dropped)


def deduplicate_and_cap(rows: pl.DataFrame, max_per_user: int) -> tuple[pl.DataFrame, Counter[str]]:
    """Removes duplicates, then keeps only the most recent interactions of each user.

    Args:
        rows: Columns user, item and timestamp, with all interactions of every user in it. Items are
            numbered in the order of their ids, which decides between equal times.
        max_per_user: Maximum interactions to keep per user.

    Returns:
        The remaining rows, and how many were dropped, by reason.
    """
    unique = rows.unique()
    capped = _cap_per_user(unique, max_per_user)
    return capped, Counter(
        duplicate_interaction=rows.height - unique.height,
        over_user_cap=unique.height - capped.height,
    )


def latest_valid_timestamp(data: DataSettings) -> int:
    """Returns the latest plausible time [Unix seconds]: `data.latest`, or a day from now."""
    return data.latest if data.latest is not None else int(time.time()) + SECONDS_PER_DAY


def disambiguate_item_titles(items: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Returns the items of a domain with distinct titles, sorted by item_id.

    Also returns how many titles were changed.
    """
    ordered = items.sort("item_id")
    titles, num_changed = disambiguate_titles(ordered["title"].to_list())
    return ordered.with_columns(title=pl.Series(titles, dtype=pl.String)), num_changed


def _timestamp_faults(
    ticks_per_second: int, latest: int, zero_is_missing: bool
) -> dict[str, pl.Expr]:
    """Returns the tests for implausible times, by reason.

    Times in another unit have their own reasons, because they show which setting to correct.

    Args:
        ticks_per_second: Ticks of a time in a second.
        latest: Latest plausible time [Unix seconds].
        zero_is_missing: Whether the time 0 stands for none.
    """
    tick = pl.col("timestamp")
    return {
        "no_timestamp": tick.is_null(),
        **({"timestamp_is_zero": tick == 0} if zero_is_missing else {}),
        "timestamp_in_finer_unit": tick >= _WRONG_UNIT_FACTOR * latest * ticks_per_second,
        "timestamp_in_future": tick > latest * ticks_per_second,
        # Interactions may be much older than `latest`, so the margin is wider on this side.
        "timestamp_in_coarser_unit": (ticks_per_second > 1)
        & (tick >= 0)
        & (tick < latest * ticks_per_second // (_WRONG_UNIT_FACTOR * _WRONG_UNIT_FACTOR)),
        "timestamp_before_1970": tick < 0,
    }


def _filter_by_rating(
    rows: pl.DataFrame, min_rating: float | None
) -> tuple[pl.DataFrame, Counter[str]]:
    """Drops and counts the rows below a minimum rating; without a minimum, keeps all."""
    if min_rating is None:
        return rows, Counter()
    liked = rows.filter(pl.col("rating").fill_nan(None) >= min_rating).drop("rating")
    return liked, Counter(below_min_rating=rows.height - liked.height)


def _cap_per_user(rows: pl.DataFrame, max_per_user: int) -> pl.DataFrame:
    """Keeps the most recent interactions of every user; of equal times, the highest items."""
    counts = np.bincount(rows["user"].to_numpy())
    if counts.max(initial=0) <= max_per_user:
        return rows
    # Ranking is slow: rank only the rows of users above the cap.
    is_over_cap = (pl.Series(counts) > max_per_user).gather(rows["user"])
    recency_rank = pl.struct("timestamp", "item").rank("ordinal", descending=True).over("user")
    return pl.concat(
        [
            rows.filter(~is_over_cap),
            rows.filter(is_over_cap).filter(recency_rank <= max_per_user),
        ]
    )


def _separate_faulty_rows(
    domain: str, rows: pl.DataFrame, faults: Mapping[str, pl.Expr], raw: RawInteractions
) -> tuple[pl.DataFrame, tuple[QuarantinedRows, ...]]:
    """Returns the rows without fault, and the others grouped by file and first fault."""
    fault_codes = quarantine.first_fault_codes(rows, faults, raw.malformed)
    if not (fault_codes > 0).any():
        return rows, ()
    quarantined = quarantine.collect_faulty_rows(
        domain, raw.rows_per_file, faults, fault_codes, raw.row_values
    )
    return rows.filter(fault_codes == 0), quarantined


def _missing_id(column: str, ids: pl.Series) -> pl.Expr:
    """Tests whether a row has no id, or one that stands for none."""
    no_ids = is_no_id(ids).arg_true().cast(pl.UInt32)
    return pl.col(column).is_null() | pl.col(column).is_in(no_ids.implode())


def check_quarantined_fraction(
    domain: str,
    quarantined: Sequence[QuarantinedRows],
    num_usable: int,
    data: DataSettings,
    titled_item_ids: pl.Series,
    faulty_items: Sequence[QuarantinedRows],
) -> None:
    """Checks that no larger fraction of a domain's rows is quarantined than allowed.

    Args:
        domain: Name of the domain.
        quarantined: The rows that cannot be used.
        num_usable: Number of all other rows.
        data: The settings, with `data.max_quarantined`.
        titled_item_ids: Ids of the items with a title, for the message.
        faulty_items: Rows of the items that cannot be used, for the message.

    Raises:
        DataError: The fraction is larger.
    """
    reasons = quarantine.count_by_reason(quarantined)
    num_quarantined = reasons.total()
    num_rows = num_usable + num_quarantined
    if num_quarantined <= data.max_quarantined * num_rows:
        return
    hints = []
    if reasons["no_timestamp"]:
        hints.append(f"; times are {TIME_FORMS}")
    shown = list(quarantine.summary_lines(quarantined))
    if reasons["item_without_title"]:
        hints.append(
            f"; {titled_item_ids.len():,} items have a title, such as {titled_item_ids[0]!r}"
            if titled_item_ids.len()
            else "; no item has a title"
        )
        shown += quarantine.summary_lines(faulty_items)
    wrong_unit = reasons["timestamp_in_finer_unit"] or reasons["timestamp_in_coarser_unit"]
    summary = "".join(f"\n  {line}" for line in shown)
    raise DataError(
        f"{domain}: {num_quarantined:,} of {num_rows:,} interactions cannot be used, "
        f"which is more than data.max_quarantined ({data.max_quarantined:.0%}); correct the "
        f"data{', set data.time_unit' if wrong_unit else ''}, or raise the key"
        f"{''.join(hints)}{summary}"
    )

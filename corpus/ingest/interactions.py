"""Raw interactions of a domain (`corpus.ingest.reading`) to those that can be used; each is judged by itself.

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
from corpus.ingest.quarantine import Quarantined
from corpus.ingest.reading import Raw
from corpus.ingest.sources import layout
from corpus.ingest.titles import distinct_titles
from corpus.sampling.encoded_interactions import codes
from corpus.settings import DataSettings

DAY_S = 86_400

_COARSER = 20
"""A time that is this many times too small or too large for its unit is one of another unit."""


@dataclass(frozen=True)
class Behaviours:
    """Interactions of one domain that can be used.

    interactions: user, item (uint32: rows of users and item_ids), timestamp (int64 unix seconds); users: every name once, those of rows that were
    left out among them; item_ids: of all items with a title, ascending; dropped: what else was left out, by reason; quarantined: what cannot be used.
    """

    interactions: pl.DataFrame
    users: pl.Series
    item_ids: pl.Series
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]

    @property
    def left_out(self) -> Counter[str]:
        """All that was left out, by reason."""
        return self.dropped + quarantine.counts(self.quarantined)


def usable(
    domain: str, raw: Raw, titled: pl.Series, data: DataSettings, at_latest: int
) -> Behaviours:
    """What can be used of the rows that were read; each is judged by itself.

    titled: ids of items with a title, ascending; at_latest: unix seconds.
    """
    place = codes(raw.item_ids, titled)
    rows = raw.rows.with_columns(place=place.gather(raw.rows["item"]))
    ticks = layout.UNITS[layout.of(data).unit]
    faults = {
        **_untimed(ticks, at_latest),
        "no_user_id": _no_name("user", raw.users),
        "no_item_id": _no_name("item", raw.item_ids),
        "item_without_title": pl.col("place").is_null(),
    }
    good, quarantined = _judged(domain, rows, faults, raw)
    liked, dropped = _liked(good, data.min_rating)
    found = liked.select("user", item="place", timestamp=pl.col("timestamp") // ticks)
    return Behaviours(found, raw.users, titled, dropped, quarantined)


def cleaned(domain: str, raw: Raw, titled: pl.Series, data: DataSettings) -> Behaviours:
    """What can be used of a domain, as `usable` says, each interaction once, no user with more than `data.max_per_user`.

    Raises DataError when too many rows of the domain cannot be used.
    """
    found = usable(domain, raw, titled, data, latest(data))
    check_share(domain, found.quarantined, found.interactions.height + found.dropped.total(), data)
    rows, repeated = once(found.interactions, data.max_per_user)
    return replace(found, interactions=rows, dropped=found.dropped + repeated)


def once(found: pl.DataFrame, most: int) -> tuple[pl.DataFrame, Counter[str]]:
    """Each interaction once, and of every user the most recent ones, at most so many; and how many were left out. Items are numbered by their ids.

    All interactions of a user have to be there; of users that are not there nothing is needed.
    """
    unique = found.unique()
    capped = _capped(unique, most)
    return capped, Counter(
        duplicate_interaction=found.height - unique.height,
        over_user_cap=unique.height - capped.height,
    )


def latest(data: DataSettings) -> int:
    """Unix seconds after which a time is no use."""
    return data.latest if data.latest is not None else int(time.time()) + DAY_S


def distinct(items: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Items of one domain with titles made distinct, in the order of item_id; and how many titles were changed."""
    ordered = items.sort("item_id")
    titles, changed = distinct_titles(ordered["title"].to_list())
    return ordered.with_columns(title=pl.Series(titles, dtype=pl.String)), changed


def _untimed(ticks: int, latest: int) -> dict[str, pl.Expr]:
    """Rows whose time is none, by reason. ticks: of the times in a second; latest: in unix seconds.

    A unit that is a thousand times too fine or too coarse is told from a time that is merely wrong: it says what to correct.
    """
    tick = pl.col("timestamp")
    return {
        "no_timestamp": tick.is_null(),
        "timestamp_in_finer_unit": tick >= _COARSER * latest * ticks,
        "timestamp_in_future": tick > latest * ticks,
        "timestamp_in_coarser_unit": (ticks > 1)
        & (tick >= 0)
        & (tick < latest * ticks // (_COARSER * _COARSER)),
        "timestamp_before_1970": tick < 0,
    }


def _liked(found: pl.DataFrame, at_least: float | None) -> tuple[pl.DataFrame, Counter[str]]:
    """Interactions with a rating of at least so much; all, where none is asked for."""
    if at_least is None:
        return found, Counter()
    kept = found.filter(pl.col("rating").fill_nan(None) >= at_least).drop("rating")
    return kept, Counter(below_min_rating=found.height - kept.height)


def _capped(found: pl.DataFrame, most: int) -> pl.DataFrame:
    """The most recent interactions of every user, at most so many; ties by item."""
    counts = np.bincount(found["user"].to_numpy())
    if counts.max(initial=0) <= most:
        return found
    busy = (pl.Series(counts) > most).gather(found["user"])
    recent = pl.struct("timestamp", "item").rank("ordinal", descending=True).over("user")
    return pl.concat([found.filter(~busy), found.filter(busy).filter(recent <= most)])


def _judged(
    domain: str, rows: pl.DataFrame, faults: Mapping[str, pl.Expr], raw: Raw
) -> tuple[pl.DataFrame, tuple[Quarantined, ...]]:
    """Rows without any fault; and the others, by the first fault that they have."""
    fault = quarantine.first_fault(rows, faults, raw.malformed)
    if not (fault > 0).any():
        return rows, ()
    return rows.filter(fault == 0), quarantine.of_rows(domain, raw.files, faults, fault, raw.values)


def _no_name(column: str, names: pl.Series) -> pl.Expr:
    """Whether a row's number stands for no name, or none is there."""
    blank = (names.str.strip_chars() == "").arg_true().cast(pl.UInt32)
    return pl.col(column).is_null() | pl.col(column).is_in(blank.implode())


def check_share(domain: str, found: Sequence[Quarantined], others: int, data: DataSettings) -> None:
    """Raises DataError if a larger share of a domain's rows than allowed cannot be used. others: the rows that can."""
    reasons = quarantine.counts(found)
    bad, rows = reasons.total(), others + reasons.total()
    if bad > data.max_quarantined * rows:
        unit = reasons["timestamp_in_finer_unit"] or reasons["timestamp_in_coarser_unit"]
        told = "".join(f"\n  {line}" for line in quarantine.lines(found))
        raise DataError(
            f"{domain}: {bad:,} of {rows:,} interactions cannot be used, which is more than data.max_quarantined ({data.max_quarantined:.0%}); "
            f"correct the data{', set data.time_unit' if unit else ''}, or raise the key{told}"
        )

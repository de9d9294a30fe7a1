"""Raw behaviours of a data root to canonical interactions and items, one domain at a time.

Where the files lie and what their columns are called is told by `data.format` (`corpus.sources`). What cannot be used is told by file and column;
single rows that cannot be used are quarantined and counted by reason.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa

from cluster.errors import DataError
from cluster.say import Say
from corpus.coded import codes
from corpus.items import clean_title, distinct_titles
from corpus.settings import DataSettings
from corpus.sources import files, layout

DAY_S = 86_400
Numbers = tuple[pl.DataFrame, pl.Series, pl.Series, int]
"""What `coded` gives."""

_COARSER = 20
"""A time that is this many times too small or too large for its unit is one of another unit."""


@dataclass(frozen=True)
class Behaviours:
    """One domain as it was read.

    interactions: user, item (uint32: rows of users and item_ids), timestamp (int64 unix seconds); after `with_title` each row once, of an item with a
    title; users, item_ids: every name once, those of rows that were left out among them; items: item_id, title, each item once, by item_id;
    dropped: interactions that are no use, by reason; of_titles: what else was left out, until it is among the dropped.
    """

    interactions: pl.DataFrame
    users: pl.Series
    item_ids: pl.Series
    items: pl.DataFrame
    dropped: Counter[str]
    of_titles: Counter[str]

    def named(self) -> pl.DataFrame:
        """The interactions by names: user_id, item_id, timestamp."""
        user, item, timestamp = self.interactions.select("user", "item", "timestamp").get_columns()
        return pl.DataFrame({"user_id": self.users.gather(user), "item_id": self.item_ids.gather(item), "timestamp": timestamp})


def read(data: DataSettings, domain: str, say: Say, *, titled: bool = True) -> Behaviours:
    """Read and validate one domain. titled: leave interactions out whose item has no title; else `with_title` is for the caller to call.

    Raises DataError, which names file and column, or the share of rows that is no use.
    """
    of_interactions, of_items = layout.files(data, domain)
    numbers = coded(*_read(of_interactions, columns_of(data), data, say))
    items, of_titles = read_items(data, of_items, say)
    behaviours = usable(numbers, items, data, latest(data))
    behaviours = replace(behaviours, of_titles=behaviours.of_titles + of_titles)
    return with_title(behaviours, items["item_id"], domain, data) if titled else behaviours


def usable(read: Numbers, items: pl.DataFrame, data: DataSettings, at_latest: int) -> Behaviours:
    """What of the rows that were read can be used; each row is judged by itself. items: as `read_items` gives them; at_latest: unix seconds."""
    raw, users, item_ids, malformed = read
    timed, untimed = _timed(raw, layout.UNITS[layout.of(data).unit], at_latest)
    kept, dropped = _usable(timed, {"no_user_id": _no_name("user", users), "no_item_id": _no_name("item", item_ids)})
    liked, disliked = _liked(kept, data.min_rating)
    return Behaviours(liked, users, item_ids, items, dropped + untimed + Counter(malformed_line=malformed), disliked)


def with_title(found: Behaviours, titled: pl.Series, domain: str, data: DataSettings) -> Behaviours:
    """The interactions whose item is among those with a title, each once, no user with more than `data.max_per_user`.

    Raises DataError when too many rows of the domain are no use.
    """
    known = of_titled(found, titled.sort())
    check_share(domain, known.dropped, known.interactions.height, data.max_quarantined)
    rows, repeated = once(known.interactions, data.max_per_user)
    return replace(known, interactions=rows, dropped=known.dropped + known.of_titles + repeated, of_titles=Counter())


def of_titled(found: Behaviours, titled: pl.Series) -> Behaviours:
    """The interactions whose item is among those with a title, whose ids ascend; items are then numbered in that order."""
    place = codes(found.item_ids, titled).gather(found.interactions["item"])
    kept = found.interactions.with_columns(item=place).filter(place.is_not_null())
    dropped = found.dropped + Counter(item_without_title=found.interactions.height - kept.height)
    return replace(found, interactions=kept, item_ids=titled, dropped=dropped)


def once(found: pl.DataFrame, most: int) -> tuple[pl.DataFrame, Counter[str]]:
    """Each interaction once, and of every user the most recent ones, at most so many; and how many were left out. Items are numbered by their ids.

    All interactions of a user have to be there; of users that are not there nothing is needed.
    """
    unique = found.unique()
    capped = _capped(unique, most)
    return capped, Counter(duplicate_interaction=found.height - unique.height, over_user_cap=unique.height - capped.height)


def latest(data: DataSettings) -> int:
    """Unix seconds after which a time is no use."""
    return data.latest if data.latest is not None else int(time.time()) + DAY_S


def distinct(items: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Items of one domain with titles made distinct, in the order of item_id; and how many titles were changed."""
    ordered = items.sort("item_id")
    titles, changed = distinct_titles(ordered["title"].to_list())
    return ordered.with_columns(title=pl.Series(titles, dtype=pl.String)), changed


def _timed(raw: pl.DataFrame, ticks: int, latest: int) -> tuple[pl.DataFrame, Counter[str]]:
    """Rows whose time is one, in unix seconds; and how many are not, by reason. ticks: of the times in a second; latest: in unix seconds.

    A unit that is a thousand times too fine or too coarse is told from a time that is merely wrong: it says what to correct.
    """
    tick = pl.col("timestamp")
    faults = {
        "no_timestamp": tick.is_null(),
        "timestamp_in_finer_unit": tick >= _COARSER * latest * ticks,
        "timestamp_in_future": tick > latest * ticks,
        "timestamp_in_coarser_unit": (ticks > 1) & (tick >= 0) & (tick < latest * ticks // (_COARSER * _COARSER)),
        "timestamp_before_1970": tick < 0,
    }
    usable, dropped = _usable(raw, faults)
    return usable.with_columns(tick // ticks), dropped


def _liked(found: pl.DataFrame, at_least: float | None) -> tuple[pl.DataFrame, Counter[str]]:
    """Interactions with a rating of at least so much; all, where none is asked for."""
    if at_least is None:
        return found, Counter()
    kept = found.filter(pl.col("rating") >= at_least).drop("rating")
    return kept, Counter(below_min_rating=found.height - kept.height)


def _capped(found: pl.DataFrame, most: int) -> pl.DataFrame:
    """The most recent interactions of every user, at most so many; ties by item."""
    counts = np.bincount(found["user"].to_numpy())
    if counts.max(initial=0) <= most:
        return found
    busy = (pl.Series(counts) > most).gather(found["user"])
    recent = pl.struct("timestamp", "item").rank("ordinal", descending=True).over("user")
    return pl.concat([found.filter(~busy), found.filter(busy).filter(recent <= most)])


def _titles(raw: pl.DataFrame, malformed: int) -> tuple[pl.DataFrame, Counter[str]]:
    usable, dropped = _usable(raw, {"item_without_id": _blank("item_id")})
    titles = usable["title"].unique()
    cleaned_titles = pl.DataFrame({"title": titles, "cleaned": pl.Series([clean_title(title or "") for title in titles], dtype=pl.String)})
    cleaned = usable.join(cleaned_titles, on="title", how="left", nulls_equal=True).select("item_id", title="cleaned")
    once = cleaned.filter(pl.col("title") != "").sort("item_id", "title").unique("item_id", keep="first", maintain_order=True)
    dropped += Counter(duplicate_item=cleaned.filter(pl.col("title") != "").height - once.height, malformed_item=malformed)
    return once, dropped


def _usable(raw: pl.DataFrame, faults: Mapping[str, pl.Expr]) -> tuple[pl.DataFrame, Counter[str]]:
    """Rows without any fault, and the number of rows by the first fault that they have."""
    dropped: Counter[str] = Counter()
    for reason, fault in faults.items():
        kept = raw.filter(~fault)
        dropped[reason] = raw.height - kept.height
        raw = kept
    return raw, dropped


def _blank(column: str) -> pl.Expr:
    return pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")


def _no_name(column: str, names: pl.Series) -> pl.Expr:
    """Whether a row's number stands for no name, or none is there."""
    blank = (names.str.strip_chars() == "").arg_true().cast(pl.UInt32)
    return pl.col(column).is_null() | pl.col(column).is_in(blank.implode())


def check_share(domain: str, dropped: Counter[str], kept: int, at_most: float) -> None:
    """Raises DataError if a larger share of a domain's rows than allowed is no use. dropped: by reason; kept: the other rows."""
    rows = kept + dropped.total()
    if dropped.total() > at_most * rows:
        unit = dropped["timestamp_in_finer_unit"] or dropped["timestamp_in_coarser_unit"]
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()) if count)
        raise DataError(
            f"{domain}: {dropped.total():,} of {rows:,} interactions cannot be used ({reasons}), "
            f"which is more than data.max_quarantined ({at_most:.0%}); correct the data{', set data.time_unit' if unit else ''}, or raise the key"
        )


def coded(read: pa.Table, malformed: int) -> Numbers:
    """What was read, with numbers for ids: user, item (uint32), timestamp, rating; the names that they stand for: users', items'; lines unread."""
    (users, names_of_users), (items, names_of_items) = (_numbers(read[name]) for name in ("user_id", "item_id"))
    columns = {"user": users, "item": items, "timestamp": pl.Series(read["timestamp"], dtype=pl.Int64)}
    more = {"rating": pl.Series(read["rating"])} if "rating" in read.column_names else {}
    return pl.DataFrame(columns | more), names_of_users, names_of_items, malformed


def _numbers(ids: pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """Text [n] as numbers, null where it is, and what each stands for."""
    coded = ids.dictionary_encode().combine_chunks()
    return pl.Series(coded.indices, dtype=pl.UInt32), pl.Series(coded.dictionary, dtype=pl.String)


def columns_of(data: DataSettings) -> tuple[str, ...]:
    """The columns of interactions that are wanted, by our names."""
    return ("user_id", "item_id", "timestamp", *(("rating",) if data.min_rating is not None else ()))


def read_file(file: str, wanted: Sequence[str], data: DataSettings, groups: Sequence[int] | None = None) -> files.Read:
    """The wanted columns of one file; of a parquet file those row groups only that are named. Integer ids become text."""
    chosen = layout.of(data)
    read = files.read(file, {name: chosen.columns[name] for name in wanted}, layout.UNITS[chosen.unit], groups)
    return replace(read, table=read.table.cast(pa.schema([(name, files.TYPES[files.KINDS[name]]) for name in wanted])))


def agree(of: Sequence[str], types: Sequence[Mapping[str, str]], wanted: Sequence[str], data: DataSettings, say: Say) -> None:
    """Files of a domain must agree on the types of their columns. Raises DataError naming one that does not."""
    columns = layout.of(data).columns
    for file, found in zip(of[1:], types[1:], strict=True):
        for name in wanted:
            if ("string" in types[0][name]) != ("string" in found[name]):
                raise DataError(
                    f"{file}: column {columns[name]} is {found[name]}, yet {types[0][name]} in {of[0]}; give all files of a domain one type"
                )
    for name in wanted:
        if files.KINDS[name] == files.IDS and "int" in types[0][name]:
            say(f"{of[0]}: integers of column {columns[name]} are read as text")


def read_items(data: DataSettings, of: Sequence[str], say: Say) -> tuple[pl.DataFrame, Counter[str]]:
    """The items of a domain that have a title: item_id, title, each once, in the order of item_id; and what was left out."""
    titles, unread = _read(of, ("item_id", "title"), data, say)
    return _titles(pl.DataFrame(titles), unread)


def _read(of: Sequence[str], wanted: Sequence[str], data: DataSettings, say: Say) -> tuple[pa.Table, int]:
    """The wanted columns of files that must agree on their types; and the lines that could not be read."""
    found = [read_file(file, wanted, data) for file in of]
    agree(of, [read.types for read in found], wanted, data, say)
    return pa.concat_tables([read.table for read in found]), sum(read.malformed for read in found)

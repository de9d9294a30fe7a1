"""Raw behaviours of a data root to canonical interactions and items, one domain at a time.

A data root holds interactions/<Domain>.parquet (user_id, item_id, timestamp) and items/<Domain>.parquet (item_id, title); either may be a folder
of parquet files of that name. What cannot be used is told by file and column; single rows that cannot be used are quarantined and counted by reason.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from corpus.items import clean_title, distinct_titles

Say = Callable[[str], None]

LATEST = 4_102_444_800
"""Unix seconds of the year 2100. A later time is one in milliseconds, or nonsense."""

_IDS, _TEXT, _SECONDS = "strings or integers", "strings", "integers (unix seconds)"


@dataclass(frozen=True)
class Behaviours:
    """One domain as it was read.

    interactions: user_id, item_id (strings), timestamp (int64 unix seconds); after `with_title` each row once, of an item with a title;
    items: item_id, title, each item once; dropped: interactions left out, by reason; of_titles: items left out, until they are among the dropped.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    dropped: Counter[str]
    of_titles: Counter[str]


def sources(root: str, domain: str) -> tuple[list[str], list[str]]:
    """The files of a domain: (interactions, items). Raises DataError naming what is missing."""
    if not storage.exists(root):
        raise DataError(f"{root}: no such data root; set data.root to a folder with interactions/ and items/")
    return _files(root, "interactions", domain), _files(root, "items", domain)


def read(root: str, domain: str, max_quarantined: float, say: Say, *, titled: bool = True) -> Behaviours:
    """Read and validate one domain. titled: leave interactions out whose item has no title; else `with_title` is for the caller to call.

    Raises DataError, which names file and column, or the share of rows that is no use.
    """
    of_interactions, of_items = sources(root, domain)
    raw = _read(of_interactions, {"user_id": _IDS, "item_id": _IDS, "timestamp": _SECONDS}, say)
    usable, dropped = _usable(
        raw,
        {
            "no_user_id": _blank("user_id"),
            "no_item_id": _blank("item_id"),
            "implausible_timestamp": pl.col("timestamp").is_null() | ~pl.col("timestamp").is_between(0, LATEST - 1),
        },
    )
    items, of_titles = _titles(_read(of_items, {"item_id": _IDS, "title": _TEXT}, say))
    found = Behaviours(usable, items, dropped, of_titles)
    return with_title(found, items["item_id"], domain, max_quarantined) if titled else found


def with_title(found: Behaviours, titled: pl.Series, domain: str, max_quarantined: float) -> Behaviours:
    """The interactions whose item is among those with a title, each once. Raises DataError when too many rows of the domain are no use."""
    kept = found.interactions.filter(pl.col("item_id").is_in(titled.implode()))
    dropped = found.dropped + Counter(item_without_title=found.interactions.height - kept.height)
    _check_share(domain, dropped, found.interactions.height + found.dropped.total(), max_quarantined)
    unique = kept.unique(maintain_order=True)
    return Behaviours(unique, found.items, dropped + found.of_titles + Counter(duplicate_interaction=kept.height - unique.height), Counter())


def distinct(items: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Items of one domain with titles made distinct, in the order of item_id; and how many titles were changed."""
    ordered = items.sort("item_id")
    titles, changed = distinct_titles(ordered["title"].to_list())
    return ordered.with_columns(title=pl.Series(titles, dtype=pl.String)), changed


def _titles(raw: pl.DataFrame) -> tuple[pl.DataFrame, Counter[str]]:
    usable, dropped = _usable(raw, {"item_without_id": _blank("item_id")})
    cleaned = usable.with_columns(title=pl.Series([clean_title(title or "") for title in usable["title"]], dtype=pl.String))
    once = cleaned.filter(pl.col("title") != "").sort("item_id", "title").unique("item_id", keep="first", maintain_order=True)
    dropped["duplicate_item"] = cleaned.filter(pl.col("title") != "").height - once.height
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


def _check_share(domain: str, dropped: Counter[str], rows: int, at_most: float) -> None:
    if dropped.total() > at_most * rows:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items() if count)
        raise DataError(
            f"{domain}: {dropped.total():,} of {rows:,} interactions cannot be used ({reasons}), "
            f"which is more than data.max_quarantined ({at_most:.0%}); correct the data, or raise the key"
        )


def _files(root: str, kind: str, domain: str) -> list[str]:
    place = storage.join(root, kind, f"{domain}.parquet")
    fs, path = storage.filesystem(place)
    if fs.isdir(path):
        inside = [storage.join(place, name) for name in storage.names(place) if name.endswith(".parquet") and not name.startswith((".", "_"))]
        if not inside:
            raise DataError(f"{place}: a folder without parquet files")
        return inside
    if not fs.exists(path):
        known = [name.removesuffix(".parquet") for name in storage.names(storage.join(root, kind)) if name.endswith(".parquet")]
        raise DataError(f"{place}: no such file; {kind}/ has {', '.join(known) or 'no domain'}; correct data.domains or data.held_out")
    return [place]


def _read(files: list[str], columns: Mapping[str, str], say: Say) -> pl.DataFrame:
    """The named columns of parquet files that must agree on them; integer ids become strings."""
    tables = [_read_file(file, columns) for file in files]
    for file, table in zip(files[1:], tables[1:], strict=True):
        for name in columns:
            first, this = tables[0].schema.field(name).type, table.schema.field(name).type
            if _is_text(first) != _is_text(this):
                raise DataError(f"{file}: column {name} is {this}, yet {first} in {files[0]}; give all files of a domain one type")
    for name, kind in columns.items():
        if kind == _IDS and pa.types.is_integer(tables[0].schema.field(name).type):
            say(f"{files[0]}: integers of column {name} are read as text")
    wanted = pa.schema([(name, pa.int64() if kind == _SECONDS else pa.large_string()) for name, kind in columns.items()])
    return pl.DataFrame(pa.concat_tables([table.cast(wanted) for table in tables]))


def _read_file(file: str, columns: Mapping[str, str]) -> pa.Table:
    content = storage.read_bytes(file)
    if not content:
        raise DataError(f"{file}: the file is empty (0 bytes); write it again")
    try:
        source = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        missing = [name for name in columns if name not in source.schema_arrow.names]
        if missing:
            raise DataError(f"{file}: no column {', '.join(missing)}; it has {', '.join(source.schema_arrow.names)}")
        table = source.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a whole parquet file ({error}); write it again") from None
    for name, kind in columns.items():
        found = table.schema.field(name).type
        if not _fits(found, kind):
            raise DataError(f"{file}: column {name} is {found}, {kind} are allowed; convert it")
    return table.select(list(columns))


def _fits(found: pa.DataType, kind: str) -> bool:
    return bool((kind != _SECONDS and _is_text(found)) or (kind != _TEXT and pa.types.is_integer(found)))


def _is_text(found: pa.DataType) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))

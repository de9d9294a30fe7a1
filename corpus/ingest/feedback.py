"""What became of rankings that were served: how much of what users bought had been shown to them.

The purchases of a feedback are its interactions, which become samples as any others do. The
rankings only say where the purchases come from (docs/decisions/027-feedback.md).
"""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.console import Say
from cluster.errors import DataError
from cluster.storage_errors import is_storage_error
from corpus.ingest import data_roots, raw_data
from corpus.ingest.sources import layout
from corpus.ingest.sources.block import require_columns
from corpus.ingest.sources.file_splits import FileSplit
from corpus.settings import DataSettings

FEEDBACK = "feedback"
"""The format (`data.format`) that has served rankings beside its interactions."""
ITEMS = "items"
"""Column of served rankings: item ids, the best first."""


@dataclass(frozen=True)
class FeedbackCounts:
    """Purchases of a domain by what had been served to the user before.

    Attributes:
        rankings: Rankings that were served.
        purchases: Distinct purchases.
        after_ranking: Those of users to whom a ranking was served before, or in the same second.
        in_ranking: Those of an item in the last such ranking.
        first_in_ranking: Those of its first item.
    """

    rankings: int
    purchases: int
    after_ranking: int
    in_ranking: int
    first_in_ranking: int

    def __str__(self) -> str:
        def with_percent(count: int) -> str:
            return f"{count:,} ({count / max(self.after_ranking, 1):.1%})"

        return (
            f"{self.rankings:,} rankings served, {self.purchases:,} purchases, of which "
            f"{self.after_ranking:,} after a ranking: "
            f"{with_percent(self.in_ranking)} of an item in it, "
            f"{with_percent(self.first_in_ranking)} of its first"
        )


def count_feedback(purchases: pl.DataFrame, served: pl.DataFrame) -> FeedbackCounts:
    """Counts purchases by the ranking that was last served to their user. Pure.

    Args:
        purchases: user_id, item_id, timestamp; rows with a null are left out.
        served: user_id, timestamp and items (list of ids, the best first), likewise.
    """
    bought = purchases.drop_nulls().unique().sort("timestamp")
    shown = served.drop_nulls().sort("timestamp", maintain_order=True)
    last_shown = bought.join_asof(shown, on="timestamp", by="user_id", check_sortedness=False)
    answered = last_shown.filter(pl.col(ITEMS).is_not_null())
    is_first = answered[ITEMS].list.first() == answered["item_id"]
    return FeedbackCounts(
        shown.height,
        bought.height,
        answered.height,
        answered.filter(pl.col(ITEMS).list.contains(pl.col("item_id"))).height,
        int(is_first.sum()),
    )


def measure_feedback(data: DataSettings, say: Say) -> dict[str, FeedbackCounts]:
    """Reads the feedback of the domains in the settings, and says what became of the rankings.

    Returns:
        The counts of each domain; empty for other formats.

    Raises:
        DataError: A file or a column is missing or unreadable; the message names it.
    """
    settings = {d: data_roots.at_root(data, d) for d in (*data.domains, *data.held_out)}
    counts = {
        domain: count_feedback(_read_purchases(single, domain), _read_served(single, domain))
        for domain, single in settings.items()
        if single.format == FEEDBACK
    }
    for domain, domain_counts in counts.items():
        say(f"{domain}: {domain_counts}")
    return counts


def _read_purchases(data: DataSettings, domain: str) -> pl.DataFrame:
    """Reads user_id, item_id and timestamp of the purchases of a domain."""
    return pl.concat(
        pl.DataFrame(block.table)
        for file in layout.find_files(data, domain)[0]
        for block in raw_data.read_blocks(
            FileSplit(file), ("user_id", "item_id", "timestamp"), data
        )
    )


def _read_served(data: DataSettings, domain: str) -> pl.DataFrame:
    """Reads user_id, timestamp and items of the rankings that were served in a domain."""
    return pl.concat(
        pl.DataFrame(block.table).with_columns(_read_item_lists(file))
        for file in layout.find_served_files(data, domain)
        for block in raw_data.read_blocks(FileSplit(file), ("user_id", "timestamp"), data)
    )


def _read_item_lists(file: str) -> pl.Series:
    """Reads the lists of items of a file of served rankings, as text.

    Raises:
        DataError: The file has no such column, or one of another type.
    """
    try:
        content = pq.ParquetFile(
            pa.BufferReader(storage.read_bytes(file)), page_checksum_verification=True
        )
        require_columns(file, {ITEMS: ITEMS}, content.schema_arrow.names)
        column = content.read([ITEMS], use_threads=False)[ITEMS]
    except (pa.ArrowException, OSError) as error:
        if is_storage_error(error):
            raise
        raise DataError(f"{file}: not a whole parquet file ({error}); write it again") from None
    lists = pl.Series(ITEMS, column)
    inner = lists.dtype.inner if isinstance(lists.dtype, pl.List) else None
    if inner is None or not (inner == pl.String or inner.is_integer()):
        raise DataError(
            f"{file}: column {ITEMS} is {column.type}, lists of strings or integers are allowed; "
            "give the ids of the items that were shown, the best first"
        )
    return lists.cast(pl.List(pl.String))

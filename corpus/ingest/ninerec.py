"""Names the fields of NineRec's files, which have no header.

NineRec (Zhang et al., 2024) has two files for each domain: `<Domain>_pair.csv` with user, item and
time, and `<Domain>_item.csv` with item, text in Chinese and text in English. Its page puts the user
first in a pair, and its own script the item. So which it is, is looked up: the field that holds ids
of the items is the item's.
"""

import csv
import io
from collections.abc import Mapping
from contextlib import suppress

from cluster import storage
from cluster.errors import DataError

USER, ITEM, TIME = "User ID", "Item ID", "Timestamp"
CHINESE, ENGLISH = "Text in Chinese", "Text in English"
COLUMNS = {"user_id": USER, "item_id": ITEM, "timestamp": TIME, "title": ENGLISH}
"""Our names of columns to those of the fields, as the page of NineRec calls them."""
ITEM_FIELDS = [ITEM, CHINESE, ENGLISH]
PAIR, ITEMS = "_pair.csv", "_item.csv"
"""What the name of a file ends with."""


def name_fields(file: str, first_line: bytes, columns: Mapping[str, str]) -> list[str] | None:
    """Returns the names of a file's fields; None where it has a header, or is not NineRec's.

    Args:
        file: URI of the file.
        first_line: Its first line.
        columns: Our names of the columns to read, to the file's.

    Raises:
        DataError: Neither of the first two fields of a pair is an item's id.
    """
    wanted = set(columns.values())
    if not file.endswith((PAIR, ITEMS)) or not wanted <= {USER, TIME, *ITEM_FIELDS}:
        return None
    fields = _split(first_line)
    if wanted & set(fields) or len(fields) < 2:
        return None
    if file.endswith(ITEMS):
        return ITEM_FIELDS[: len(fields)]
    names = [[USER, ITEM, TIME], [ITEM, USER, TIME]]
    items = f"{file.removesuffix(PAIR)}{ITEMS}"
    ids = _read_first_fields(items)
    fitting = [order for order in names if fields[order.index(ITEM)] in ids]
    if len(fitting) != 1:
        raise DataError(
            f"{file}: its first line is {', '.join(fields)}, of which "
            f"{'both are' if fitting else 'neither is'} an id of an item in {items}; "
            f"write a header above it ({USER},{ITEM},{TIME})"
        )
    return fitting[0]


def _read_first_fields(file: str) -> set[str]:
    """Returns the first field of every line of a csv file; raises DataError if it is no csv."""
    try:
        return {row[0] for row in csv.reader(io.StringIO(storage.read_text(file))) if row}
    except csv.Error as error:
        raise DataError(f"{file}: not readable as csv: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 ({error}); convert it") from None


def _split(line: bytes) -> list[str]:
    """Returns the fields of a line; none if it is no line of a csv file."""
    with suppress(csv.Error):
        return next(csv.reader([line.decode("utf-8", "replace").strip()]), [])
    return []

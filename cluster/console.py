"""Progress messages: the type of the function that takes them, and the one that prints them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Say = Callable[[str], None]
"""A function that takes one line of progress for people, for example `print_line`."""

MIN_NAME_COLUMNS = 8
"""Characters of a line of a name in a table, at least."""


def print_line(line: str) -> None:
    """Prints a line to stdout exactly as it is: no markup, emoji, highlighting or wrapping."""
    from rich.console import Console  # only jobs print; workers need not load rich

    Console().print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(table: "Table") -> None:
    """Prints a table to stdout, whatever its width.

    Names are folded so that it fits the terminal. Where that does not suffice, lines are longer
    than the terminal is wide: a number is never cut.
    """
    from rich.console import Console

    keep_numbers(table)
    _, right, _, left = table.padding
    borders = len(table.columns) + 1
    cells = sum((column.min_width or MIN_NAME_COLUMNS) + left + right for column in table.columns)
    Console(width=max(Console().width, cells + borders)).print(table)


def print_tables(tables: "Iterable[Table]") -> None:
    """Prints tables to stdout, with an empty line after each."""
    for table in tables:
        print_table(table)
        print_line("")


def keep_numbers(table: "Table") -> None:
    """Lets the columns of numbers, which are right-aligned, keep their width; names are folded."""
    from rich.cells import cell_len
    from rich.text import Text

    for column in table.columns:
        if column.justify != "right":
            column.no_wrap, column.overflow = False, "fold"
            continue
        texts = [Text.from_markup(str(cell)).plain for cell in (column.header, *column.cells)]
        lines = [line for text in texts for line in text.splitlines()]
        column.no_wrap = True
        column.min_width = max(map(cell_len, lines), default=0)

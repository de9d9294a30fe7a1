"""Progress messages: the type of the function that takes them, and the one that prints them."""

from collections.abc import Callable

Say = Callable[[str], None]
"""A function that takes one line of progress for people, for example `print_line`."""


def print_line(line: str) -> None:
    """Prints a line to stdout exactly as it is: no markup, emoji, highlighting or wrapping."""
    from rich.console import Console  # only jobs print; workers need not load rich

    Console().print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

"""How work under way tells a person of itself."""

from collections.abc import Callable

from rich.console import Console

Say = Callable[[str], None]
"""Takes one line of progress; `print` is one."""


def print_line(line: str) -> None:
    """Prints a line exactly as it is, through rich, so that it goes where tables go."""
    Console().print(line, markup=False, highlight=False, soft_wrap=True)

"""How work under way tells a person of itself."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Takes one line of progress; `print` is one."""

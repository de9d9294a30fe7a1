"""The one prompt of every domain (paper Table 1): titles only, always the word "item"."""

from collections.abc import Sequence

OPENING = "This user has bought {"
MIDDLE = "} in the previous. Please predict the next item this user will buy. The item title candidates are {"
CLOSING = "}. Choose only one item from the candidates. The answer is"
SEPARATOR = ", "


def render_prompt(history: Sequence[str], candidates: Sequence[str]) -> str:
    """The prompt up to the answer. history: titles, oldest first; candidates: titles in their fixed order. No trailing space."""
    return f"{OPENING}{SEPARATOR.join(history)}{MIDDLE}{SEPARATOR.join(candidates)}{CLOSING}"

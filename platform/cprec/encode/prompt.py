"""The one prompt of every domain (paper Table 1): titles only, always the word "item"."""

from collections.abc import Sequence

from corpus.sampling.prompt_text import CLOSING, MIDDLE, OPENING, SEPARATOR

__all__ = ["CLOSING", "MIDDLE", "OPENING", "SEPARATOR", "render_prompt"]


def render_prompt(history: Sequence[str], candidates: Sequence[str]) -> str:
    """Renders the prompt of a sample, up to the answer and without a trailing space.

    Args:
        history: Titles of the user's earlier items, oldest first.
        candidates: Titles to choose from, in the order stored in the sample.
    """
    return f"{OPENING}{SEPARATOR.join(history)}{MIDDLE}{SEPARATOR.join(candidates)}{CLOSING}"

"""Finds the candidate that a generated text names, by either of two rules. Pure.

The rules are described in docs/how-to/compare-models.md.
"""

from collections.abc import Sequence


def normalise(text: str) -> str:
    """Returns text in the form in which it is compared: without case and extra white space."""
    return " ".join(text.split()).casefold()


def match_exact(text: str, titles: Sequence[str]) -> int | None:
    """Returns the position of the candidate whose title equals the text.

    Titles of a domain are distinct (corpus.ingest.titles), so at most one candidate matches.

    Args:
        text: A generated answer.
        titles: Titles of the candidates.

    Returns:
        The position among the candidates, or None if no title equals the text.
    """
    answer = normalise(text)
    return next(
        (position for position, title in enumerate(titles) if normalise(title) == answer), None
    )


def match_llara(text: str, titles: Sequence[str]) -> int | None:
    """Returns the position of the only candidate whose title is part of the text.

    This is how LLaRA's code counts. A correct answer is lost if its title contains another
    candidate's title.

    Args:
        text: A generated answer.
        titles: Titles of the candidates.

    Returns:
        The position among the candidates, or None if no title or several titles are in the text.
    """
    answer = normalise(text)
    matches = [position for position, title in enumerate(titles) if normalise(title) in answer]
    return matches[0] if len(matches) == 1 else None

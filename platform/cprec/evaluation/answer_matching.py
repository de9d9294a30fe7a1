"""Finds the candidate that a generated text names, by either of two rules. Pure.

The rules are described in docs/how-to/compare-models.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """A generated answer, and the candidates that it names.

    Attributes:
        text: The text.
        exact: Item that it names exactly; None for none. An answer that was restricted to the
            candidates names one by its tokens, whatever they are decoded to.
        llara: Item that it names by LLaRA's rule; None for none.
    """

    text: str
    exact: int | None
    llara: int | None


def normalise(text: str) -> str:
    """Returns text in the form in which it is compared: without case and extra white space."""
    return " ".join(text.split()).casefold()


def match_exact(text: str, titles: Sequence[str], decoded: Sequence[str] = ()) -> int | None:
    """Returns the position of the candidate whose title equals the text.

    Titles of a domain are distinct (corpus.ingest.titles), so at most one matches as it is stored.
    A model can only write what its tokenizer decodes, which may be another text: in lower case,
    say, or with other spaces. Such a title is matched next; where several are decoded alike, the
    first is taken. As the order of candidates is drawn, that is a fair draw. A title of which
    nothing is decoded is not matched: an answer without a word names no candidate.

    Args:
        text: A generated answer.
        titles: Titles of the candidates.
        decoded: The same titles, encoded and decoded again.

    Returns:
        The position among the candidates, or None if no title equals the text.
    """
    answer = normalise(text)
    for forms in (titles, decoded):
        for position, title in enumerate(forms):
            if answer and normalise(title) == answer:
                return position
    return None


def match_llara(text: str, titles: Sequence[str], decoded: Sequence[str] = ()) -> int | None:
    """Returns the position of the only candidate whose title is part of the text.

    This is how LLaRA's code counts. A correct answer is lost if its title contains another
    candidate's title.

    Args:
        text: A generated answer.
        titles: Titles of the candidates.
        decoded: The same titles, encoded and decoded again; they count as the titles do, except
            those of which nothing is decoded, since nothing is part of every text.

    Returns:
        The position among the candidates, or None if no title or several titles are in the text.
    """
    answer = normalise(text)
    matches = {
        position
        for forms in (titles, decoded)
        for position, title in enumerate(forms)
        if (form := normalise(title)) and form in answer
    }
    return matches.pop() if len(matches) == 1 else None

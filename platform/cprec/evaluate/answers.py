"""What a generated text means: which candidate it names, by two rules (method.md, "Metrics"). Pure."""

from collections.abc import Sequence


def normal(text: str) -> str:
    """Text as it is compared: white space collapsed, case and outer white space ignored."""
    return " ".join(text.split()).casefold()


def exact(text: str, titles: Sequence[str]) -> int | None:
    """Position of the candidate whose title the text is; None if it is none. Titles of a domain are distinct (corpus.ingest.titles), so it is one at most."""
    said = normal(text)
    return next((place for place, title in enumerate(titles) if normal(title) == said), None)


def llara(text: str, titles: Sequence[str]) -> int | None:
    """Position of the only candidate whose title is part of the text, as LLaRA's code counts it; None if there is none or more than one.

    A right answer whose title holds another candidate's title is lost by this rule.
    """
    said = normal(text)
    found = [place for place, title in enumerate(titles) if normal(title) in said]
    return found[0] if len(found) == 1 else None

"""What a generated text means: which candidate it names, by two rules (method.md, "Metrics"). Pure."""

from collections.abc import Sequence


def normalise(text: str) -> str:
    """Text as it is compared: white space collapsed, case and outer white space ignored."""
    return " ".join(text.split()).casefold()


def match_exact(text: str, titles: Sequence[str]) -> int | None:
    """Position of the candidate whose title the text is; None if it is none. Titles of a domain are distinct (corpus.ingest.titles), so it is one at most."""
    said = normalise(text)
    return next((place for place, title in enumerate(titles) if normalise(title) == said), None)


def match_llara(text: str, titles: Sequence[str]) -> int | None:
    """Position of the only candidate whose title is part of the text, as LLaRA's code counts it; None if there is none or more than one.

    A right answer whose title holds another candidate's title is lost by this rule.
    """
    said = normalise(text)
    found = [place for place, title in enumerate(titles) if normalise(title) in said]
    return found[0] if len(found) == 1 else None

"""Cleans item titles and makes them unique within a domain.

The title is all that a model sees of an item.
"""

import html
import re
import unicodedata
from collections.abc import Sequence

MAX_TITLE_CHARS = 300
"""Maximum characters of a title."""
MAX_RAW_CHARS = 20 * MAX_TITLE_CHARS
"""Characters of a title as a file gives it that are cleaned, which bounds the work.

The margin is for entities, white space and marks, which shrink when cleaned.
"""

_NUMBER_CHARS = 20
"""Characters that a number behind a title takes, at most."""

JOINERS = "\u200c\u200d"
"""Format characters to keep: they shape words and emoji; all others only hide or reorder text."""
_CHAT_CONTROL = re.compile(r"<\|[^<>|]*\|>|</?s>|\[/?INST\]|<</?SYS>>", re.IGNORECASE)
"""Control tokens of chat templates, which could make a title read as an instruction."""


def clean_title(raw: str) -> str:
    """Returns a title as plain text of at most MAX_TITLE_CHARS, possibly empty.

    HTML entities are resolved, white space is collapsed, and Unicode is normalized to NFC. Control
    and format characters, lone surrogates and control tokens of chat templates are removed.
    Cleaning a clean title changes nothing.
    """
    text = raw[:MAX_RAW_CHARS]
    # Cleaning can bring forth something to clean, as in `&amp;lt;`: repeat until nothing changes.
    while (cleaned := _clean_once(text)) != text:
        text = cleaned
    return text[:MAX_TITLE_CHARS].rstrip()


def _clean_once(text: str) -> str:
    text = html.unescape(text)
    if not text.isascii() or not text.isprintable():
        text = "".join(_plain_character(character) for character in text)
    text = _CHAT_CONTROL.sub(" ", text)
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _plain_character(character: str) -> str:
    """Returns the replacement for a character: usually itself, else a space or nothing."""
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    return "" if category in ("Cf", "Cs", "Co", "Cn") and character not in JOINERS else character


def disambiguate_titles(
    titles: Sequence[str], existing: Sequence[str] = ()
) -> tuple[list[str], int]:
    """Makes the titles of a domain distinct, ignoring case: the second "Soap" becomes "Soap (2)".

    With two candidates of the same title, the right answer would be undefined.

    Args:
        titles: The titles to make distinct.
        existing: Titles that the domain already has; they are never changed.

    Returns:
        The distinct titles, in order, and how many of them were changed.
    """
    seen = {title.casefold() for title in existing}
    taken = seen | {title.casefold() for title in titles}
    next_numbers: dict[tuple[str, str], int] = {}
    distinct = []
    num_changed = 0
    for title in titles:
        if title.casefold() in seen:
            title = _append_number(title, taken, next_numbers)
            num_changed += 1
        seen.add(title.casefold())
        taken.add(title.casefold())
        distinct.append(title)
    return distinct, num_changed


def _append_number(title: str, taken: set[str], next_numbers: dict[tuple[str, str], int]) -> str:
    """Returns the title with the lowest number from 2 on that makes it differ from all taken.

    Args:
        title: The title.
        taken: Titles that are taken, casefolded; one that was taken before still is.
        next_numbers: For a title that was here before, the number to try first; it is updated.
    """
    # A long title loses its end to the number, and which characters these are depends on case.
    key = title.casefold(), title if len(title) > MAX_TITLE_CHARS - _NUMBER_CHARS else ""
    number = next_numbers.get(key, 2)
    while True:
        suffix = f" ({number})"
        candidate = title[: MAX_TITLE_CHARS - len(suffix)].rstrip() + suffix
        number += 1
        if candidate.casefold() not in taken:
            next_numbers[key] = number
            return candidate

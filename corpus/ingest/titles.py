"""Titles: the only thing that a model sees of an item, so they are cleaned once and unique within a domain. Pure."""

import html
import re
import unicodedata
from collections.abc import Sequence

MAX_TITLE_CHARS = 300
"""Characters of a title, at most."""

_JOINERS = "\u200c\u200d"  # they shape words and emoji; every other format character only hides or reorders text
_CHAT_CONTROL = re.compile(r"<\|[^<>|]*\|>|</?s>|\[/?INST\]|<</?SYS>>", re.IGNORECASE)


def clean_title(raw: str) -> str:
    """A title in plain text: HTML entities resolved, white space collapsed, Unicode NFC, cut to MAX_TITLE.

    Control and format characters, lone surrogates and chat-control tokens are removed. Idempotent. May be empty.
    """
    text = raw[
        : 20 * MAX_TITLE_CHARS
    ]  # bounds the work; entities and white space make text longer than it reads
    while (cleaned := _clean_once(text)) != text:
        text = cleaned
    return text[:MAX_TITLE_CHARS].rstrip()


def _clean_once(text: str) -> str:
    text = html.unescape(text)
    text = (
        "".join(_plain_character(character) for character in text)
        if not text.isascii() or not text.isprintable()
        else text
    )
    text = _CHAT_CONTROL.sub(" ", text)
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _plain_character(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    return "" if category in ("Cf", "Cs", "Co", "Cn") and character not in _JOINERS else character


def disambiguate_titles(
    titles: Sequence[str], existing: Sequence[str] = ()
) -> tuple[list[str], int]:
    """The titles of one domain, made distinct regardless of case: the second "Soap" becomes "Soap (2)". Also returns how many were changed.

    Two candidates with one title would leave the right answer undefined. there: titles that the domain has already; they stay as they are.
    """
    seen = {title.casefold() for title in existing}
    taken = seen | {title.casefold() for title in titles}
    result, changed = [], 0
    for title in titles:
        if title.casefold() in seen:
            title, changed = _append_number(title, taken), changed + 1
        seen.add(title.casefold())
        taken.add(title.casefold())
        result.append(title)
    return result, changed


def _append_number(title: str, taken: set[str]) -> str:
    number = 2
    while True:
        suffix = f" ({number})"
        candidate = title[: MAX_TITLE_CHARS - len(suffix)].rstrip() + suffix
        if candidate.casefold() not in taken:
            return candidate
        number += 1

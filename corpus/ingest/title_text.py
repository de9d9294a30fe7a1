"""Tells titles from what scrapers, exports and tools write where a title should be."""

import html
import re

from corpus.ingest.sources.text_values import MISSING_VALUES, parse_literal
from corpus.ingest.titles import MAX_RAW_CHARS

NO_TITLES = MISSING_VALUES | {"true", "false"}
"""What stands for no title; an item whose real title is one of these is left out, and counted."""

MAX_NESTED = 20
"""Marks around one text that are taken away; where there are more, the others stay."""

_INLINE_NAMES = "span|b|i|em|strong|u|a|p|font|small|big|sup|sub|h[1-6]"
_INLINE_MARKUP = re.compile(
    rf"<({_INLINE_NAMES})(?:\s[^<>]*)?>(.*?)</\1\s*>", re.IGNORECASE | re.DOTALL
)
"""An element of HTML that marks text."""
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE_NAMES})(?:\s[^<>]*)?>", re.IGNORECASE)
"""The start or the end of such an element."""
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_PAGE_SOURCE = re.compile(
    # HTML that is no mark on text, or an element that was cut off
    r"<!--|<!doctype|</?(?:html|head|body|script|style|div|table|tr|td|ul|ol|li|img|iframe|form"
    r"|input|button|select|option|link|meta|noscript|svg|section|nav)\b[^<>]*>"
    r"|<\w+\s+[\w-]+\s*=\s*[\"']"
    # JavaScript
    r"|\bfunction\s*\w*\s*\(|\.getTime\s*\(|\bvar\s+\w+\s*=|\bnew\s+Date\s*\("
    r"|\b(?:document|window)\.\w+\s*[.=(]"
    # style sheets
    r"|[.#][\w-]+\s*\{[^{}]*:",
    re.IGNORECASE,
)


def extract_text(raw: str) -> str:
    """Returns the text of a title as a file gives it, not cleaned; empty if it gives none.

    Of marked text and of a list of one text, that text is taken. Nothing is taken of other lists,
    of objects, of the source of a page, or of a word for a missing value. Marks and the source of a
    page are looked for in the first MAX_RAW_CHARS characters.
    """
    text = raw.strip()
    if text in NO_TITLES:
        return ""
    literal = parse_literal(text)
    if isinstance(literal, list) and len(literal) == 1 and isinstance(literal[0], str):
        return extract_text(literal[0])
    if isinstance(literal, list | dict):
        return ""
    is_cut = len(text) > MAX_RAW_CHARS
    text = text[:MAX_RAW_CHARS]
    if "<" not in text and "&" not in text and not _PAGE_SOURCE.search(text):
        return raw
    source = html.unescape(text)
    marked = _LINE_BREAK.sub(" ", source)
    if is_cut:  # an element may end in what is cut off
        marked = _INLINE_TAG.sub("", marked)
    is_bare = False
    for _ in range(MAX_NESTED):
        inside = _INLINE_MARKUP.sub(r"\2", marked)
        is_bare = inside == marked
        if is_bare:
            break
        marked = inside
    if _PAGE_SOURCE.search(marked):
        return ""
    if marked == source:
        return raw
    return extract_text(marked) if is_bare else marked

"""Finds prompt injections in titles, and neutralises them.

A title stands in the prompt as it is. One that holds braces, which one of the prompt's templates
puts around titles, or the prompt's sentences, a marker of
chat templates or an instruction may be read as part of the prompt. Titles of real things may hold
them too, such as "The Answer Is No" (docs/decisions/021-prompt-injection.md).
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from corpus.ingest.titles import JOINERS, MAX_TITLE_CHARS
from corpus.sampling import prompt_text

BREAK = "·"
"""What `neutralise` puts between the letters of the words of an injection."""

_MIN_WORDS, _MAX_WORDS = 3, 4
"""A sentence of the prompt is known by this many of its words in a row, or by all if it is short.

Shorter sentences than the lower number would be found in too many titles.
"""

_BRACES = {"{": "(", "}": ")"}
_BRACKETS = {"<": "(", ">": ")"}
"""What `neutralise` makes of braces, and of the brackets of a chat marker."""

_GAP = r"\W+"
"""What stands between two words; it shares no character with words, so a search is linear."""

_ROLE = "(?:assistant|user|human|system|chatbot|ai)"


def _sentence_patterns(fixed_texts: Sequence[str]) -> list[str]:
    """Returns a pattern for each run of words by which a sentence of the prompt is known."""
    patterns: list[str] = []
    for sentence in re.split(r"[{}.!?]", ".".join(fixed_texts)):
        words = re.findall(r"\w+", sentence.lower())
        size = min(len(words), _MAX_WORDS)
        if size >= _MIN_WORDS:
            runs = (words[start : start + size] for start in range(len(words) - size + 1))
            patterns += [rf"\b{_GAP.join(run)}\b" for run in runs]
    return patterns


# Patterns are written so that Python and Polars (Rust) read them alike. A space is a gap.
PATTERNS: Mapping[str, Sequence[str]] = {
    "brace": ["[{}]"],
    "prompt_sentence": _sentence_patterns(
        (prompt_text.HEAD, prompt_text.BETWEEN, prompt_text.TAIL)
    ),
    "chat_marker": [
        r"<+[\s/]*\|[^<>]*>",
        r"<+[\s/]*(?:im (?:start|end)|(?:start|end) of turn|(?:begin|end) of text|endoftext|eot id"
        rf"|s|bos|eos|pad|unk|sys|think|answer|{_ROLE})[\s/]*>",
        rf"\[[\s/]*(?:inst|{_ROLE})\s*\]",
        rf"#+\s*(?:instructions?|response|input|output|question|answer|{_ROLE})\b",
        rf"(?:^|[.!?;:>)\]}}|])\s*{_ROLE}\s*:",
    ],
    "instruction": [
        rf"\b{phrase.replace(' ', _GAP)}"
        for phrase in (
            r"(?:ignore|disregard|forget|override) (?:\w+ ){0,4}?"
            r"(?:instructions?|prompts?|candidates?|context|above|previous|prior|earlier)\b",
            r"(?:choose|select|pick|recommend|rank|predict|output|return|buy) (?:\w+ )?"
            r"(?:this|following|first|last|above) "
            r"(?:item|one|title|product|candidate|option|answer)\b",
            r"(?:my|your|correct|right|best|next|final|only) "
            r"(?:answer|item|choice|prediction|recommendation|candidate|option) is\b",
            r"(?:this|the) user (?:will|would|wants?|should|must|has)\b",
            r"you are (?:now )?(?:an? )?(?:\w+ )?(?:assistant|ai|chatbot|language model)\b",
            r"system prompt\b",
            r"answer\s*[:=]",
        )
    ],
}
"""The patterns of prompt injections, by kind; they are for folded text (`_fold`)."""

KINDS = tuple(PATTERNS)

_BY_KIND = {kind: "|".join(patterns) for kind, patterns in PATTERNS.items()}
_PHRASES = re.compile("|".join(text for kind, text in _BY_KIND.items() if kind != "brace"))
_MARKS = rf"[\p{{M}}{JOINERS}]"


def find_injections(titles: pl.Series) -> pl.DataFrame:
    """Returns which kinds of prompt injections each title has.

    Spelling in capitals, in other forms of the same letters, with accents or with other characters
    between the words hides nothing; letters of other alphabets that look the same do.

    Args:
        titles: Titles.

    Returns:
        For each of KINDS a boolean column, with a row for each title.
    """
    plain = titles.str.normalize("NFKD").str.replace_all(_MARKS, "").str.to_lowercase()
    folded = plain.str.replace_all("_", " ", literal=True)
    return pl.DataFrame(
        {kind: folded.str.contains(pattern) for kind, pattern in _BY_KIND.items()},
        schema=dict.fromkeys(KINDS, pl.Boolean),
    )


def apply_setting(titles: pl.Series, setting: str) -> pl.Series:
    """Returns titles as `data.prompt_injection` asks for them; null in place of those to drop."""
    if setting == "keep":
        return titles
    changed = [
        (neutralise(title) if setting == "neutralise" else None) if is_injected else title
        for title, is_injected in zip(titles, _has_injection(titles), strict=True)
    ]
    return pl.Series(titles.name, changed, dtype=pl.String)


def count_by_domain(items: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Counts the titles with injections, in all and by kind; a title may be of several kinds.

    Args:
        items: Columns domain and title.

    Returns:
        By domain, where there are any: `titles`, and each of KINDS that occurs.
    """
    kinds = find_injections(items["title"])
    found = kinds.select(pl.any_horizontal(pl.all()).alias("titles"), pl.all())
    by_domain = found.with_columns(items["domain"]).group_by("domain").sum().sort("domain")
    return {
        row.pop("domain"): {name: count for name, count in row.items() if count}
        for row in by_domain.filter(pl.col("titles") > 0).to_dicts()
    }


def neutralise(title: str) -> str:
    """Returns a title without its injections, which people can still read.

    Braces become parentheses, as do the angle brackets of a chat marker. In a phrase, BREAK parts
    the letters of every word: "The answer is" becomes "T·h·e a·n·s·w·e·r i·s". A model takes what
    is only quoted or hyphenated for what it says (docs/benchmarks.md).
    """
    while (broken := _break_phrases(title)) != title:
        title = broken
    text = "".join(_BRACES.get(_fold(character), character) for character in title)
    return text[:MAX_TITLE_CHARS].rstrip()


def _break_phrases(title: str) -> str:
    """Returns a title with the letters parted in every phrase that is found."""
    pieces = [*title]
    for start, stop in _find_phrases(title):
        after_letter = False
        for index in range(start, stop):
            folded = _fold(title[index])
            if after_letter and folded.isalnum():
                pieces[index] = BREAK + title[index]
            pieces[index] = _BRACKETS.get(folded, pieces[index])
            after_letter = folded.isalnum() or (after_letter and not folded)
    return "".join(pieces)


def _has_injection(titles: pl.Series) -> pl.Series:
    return find_injections(titles).select(pl.any_horizontal(pl.all())).to_series()


def _find_phrases(title: str) -> Iterator[tuple[int, int]]:
    """Yields where a title has a phrase, as positions of its first character and after its last."""
    folded = [_fold(character) for character in title]
    # Which character of the title each character of the folded text comes from.
    origin = [index for index, text in enumerate(folded) for _ in text]
    for match in _PHRASES.finditer("".join(folded)):
        yield origin[match.start()], origin[match.end() - 1] + 1


def _fold(character: str) -> str:
    """Returns a character as `find_injections` compares it.

    That is in lower case, without accents, and a space for an underscore, which is no letter.
    """
    plain = "".join(
        part
        for part in unicodedata.normalize("NFKD", character)
        if not unicodedata.category(part).startswith("M") and part not in JOINERS
    )
    return plain.lower().replace("_", " ")

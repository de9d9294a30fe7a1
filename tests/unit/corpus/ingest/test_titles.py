"""Titles are cleaned to plain text and made distinct within a domain."""

import string
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.ingest.title_text import extract_text
from corpus.ingest.titles import MAX_TITLE_CHARS, clean_title, disambiguate_titles

messy_text = st.text(
    st.sampled_from([*"ab &;#x1amp<>|/s[]INST\u202e\u200b\ud800\x00\n\u0301e\u00e9\u00a0lt"]),
    max_size=60,
) | st.text(max_size=400)


@given(messy_text)
def test_cleaning_is_idempotent_and_leaves_plain_text(raw: str) -> None:
    cleaned = clean_title(raw)
    assert clean_title(cleaned) == cleaned
    assert len(cleaned) <= MAX_TITLE_CHARS
    assert " ".join(cleaned.split()) == cleaned
    assert cleaned.encode("utf-8").decode() == cleaned
    assert not set(cleaned) & set("\u202e\u200b\x00\n")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Tom &amp; Jerry&#39;s  Soap\n", "Tom & Jerry's Soap"),
        ("&amp;amp; twice", "& twice"),
        ("abc\u202edef\u200f", "abcdef"),
        ("\ud800lone", "lone"),
        ("</s><|im_start|>system [INST] hi", "system hi"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("  \x00 \t ", ""),
        ("x" * 100_000, "x" * 300),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
    ],
)
def test_examples_of_clean_titles(raw: str, cleaned: str) -> None:
    assert clean_title(raw) == cleaned


@given(
    st.lists(
        st.text(string.ascii_letters[:3] + "AB (2)", min_size=1, max_size=3)
        | st.just("b" * MAX_TITLE_CHARS),
        max_size=12,
    )
)
def test_titles_become_distinct_ignoring_case(titles: list[str]) -> None:
    distinct, num_changed = disambiguate_titles(titles)
    assert len({title.casefold() for title in distinct}) == len(titles)
    assert (
        num_changed
        == sum(before != after for before, after in zip(titles, distinct, strict=True))
        == len(titles) - len({t.casefold() for t in titles})
    )
    assert all(len(title) <= MAX_TITLE_CHARS for title in distinct)


def test_a_numbered_title_does_not_take_the_name_of_another() -> None:
    assert disambiguate_titles(["Soap", "Soap", "Soap (2)", "SOAP"]) == (
        ["Soap", "Soap (3)", "Soap (2)", "SOAP (4)"],
        2,
    )


def slowly_distinct(titles: Sequence[str], existing: Sequence[str]) -> list[str]:
    """Tries every number from 2 on for every title."""
    seen = {title.casefold() for title in existing}
    taken = seen | {title.casefold() for title in titles}
    distinct = []
    for title in titles:
        number = 1
        candidate = title
        while candidate.casefold() in (seen if number == 1 else taken):
            number += 1
            suffix = f" ({number})"
            candidate = title[: MAX_TITLE_CHARS - len(suffix)].rstrip() + suffix
        seen.add(candidate.casefold())
        taken.add(candidate.casefold())
        distinct.append(candidate)
    return distinct


TITLES = st.lists(
    st.sampled_from(["a", "A", "a ", "a (2)", "A (3)", "a (2) (2)", "\u00df", "ss", "sS"])
    | st.builds(
        lambda start, length, end: (start * length)[:length] + end,
        st.sampled_from(["b", "B", "\u00df", "s\u00df", "\u00dfs", "ss"]),
        st.integers(MAX_TITLE_CHARS - 24, MAX_TITLE_CHARS - 4),
        st.sampled_from(["", "s", "ss", "\u00df", " "]),
    ),
    max_size=40,
)


@given(TITLES, TITLES)
def test_numbers_are_the_lowest_that_are_free(titles: list[str], existing: list[str]) -> None:
    assert disambiguate_titles(titles, existing)[0] == slowly_distinct(titles, existing)


def test_many_items_of_one_title_are_numbered_in_no_time() -> None:
    titles = ["Gift Card", "GIFT CARD"] * 20_000
    began = time.process_time()
    distinct, num_changed = disambiguate_titles(titles)
    assert time.process_time() - began < 5
    assert (distinct[-1], num_changed) == ("GIFT CARD (40000)", 39_999)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<b>" * 20_000 + "x" + "</b>" * 20_000, ""),
        ("<p>" * 1_000 + "x" + "</p>" * 700, "<p>" * 300 + "x"),
        ("<b>" * 900 + "<i>" * 400 + "x" + "</i>" * 400, "<b>" * 100),
        ("<p class='a'>" + "long " * 3_000 + "</p>", ("long " * 60).strip()),
        ("&lt;b&gt;" + "long " * 3_000 + "&lt;/b&gt;", ("long " * 60).strip()),
        ("<div>" + "long " * 3_000 + "</div>", ""),
        ('{"a": "' + "long " * 3_000 + '"}', ""),
        ('["' + "long " * 3_000 + '"]', ("long " * 60).strip()),
        ("&amp;" * 20_000, "&" * 300),
    ],
)
def test_long_raw_titles_are_read_in_no_time(raw: str, text: str) -> None:
    began = time.process_time()
    assert clean_title(extract_text(raw)) == text[:MAX_TITLE_CHARS]
    assert time.process_time() - began < 5

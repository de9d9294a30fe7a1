"""Titles are cleaned to plain text and made distinct within a domain."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

"""A title stands in the prompt letter by letter: no step reads it as a template or a pattern."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RunError
from corpus.ingest.titles import clean_title
from cprec.downstream.hybrid import TextPromptEncoder
from cprec.encode.prompt import (
    BRACES,
    TABLE1,
    TEMPLATES,
    UNRECORDED,
    PromptTemplate,
    parse_template,
)
from cprec.encode.title_encoding import UncachedPromptEncoder
from cprec.encode.title_tokens import CachedPromptEncoder, tokenise_titles
from cprec.encode.tokens import TitleEncoder
from cprec.evaluation.answer_matching import match_exact
from cprec.model.tiny import train_tokenizer

FIELDS = ["{", "}", "{}", "{0}", "{title}", "{0.__class__}", "{{x}}", "{!r:>9}", "{{ 7*7 }}"]
FIELDS += ["{% raw %}", "%s", "%(title)s", "$title", "${title}", r"\g<0>", r"\1", "[0-9]+", "} {"]
titles = (
    st.lists(st.sampled_from([*FIELDS, "Lamp", "a", ",", ", "]) | st.text("{}%$\\ a0", max_size=5))
    .map("".join)
    .map(clean_title)
    .filter(bool)
)
lists = st.lists(titles, min_size=1, max_size=6, unique_by=str.casefold)
TOKENIZER = train_tokenizer([*FIELDS, *BRACES.fixed_texts], 400, TABLE1)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, clean_up_tokenization_spaces=False))


BOUGHT = "This user has bought "
NEXT = " in the previous. Please predict the next item this user will buy. "
CHOOSE = " Choose only one item from the candidates. The answer is"
TEXTS = {
    "table1": f"{BOUGHT}%s{NEXT}The item title candidates are %s.{CHOOSE}",
    "braces": f"{BOUGHT}{{%s}}{NEXT}The item title candidates are {{%s}}.{CHOOSE}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@given(history=lists, candidates=lists)
def test_titles_stand_in_the_prompt_as_they_are(
    template: PromptTemplate, history: list[str], candidates: list[str]
) -> None:
    expected = TEXTS[template.name] % (", ".join(history), ", ".join(candidates))
    assert template.render(history, candidates) == expected
    ends = template.title_ends(history, candidates)
    shown = zip([*history, *candidates], ends, strict=True)
    assert all(expected[end - len(title) : end] == title for title, end in shown)
    by_index = [*history, *candidates]
    past = list(range(len(history)))
    choice = list(range(len(history), len(by_index)))
    title_encoder = TitleEncoder(TOKENIZER, 1 << 20, template)
    for encoder in (
        CachedPromptEncoder(tokenise_titles(by_index, TOKENIZER, template), 1 << 20),
        UncachedPromptEncoder(by_index, title_encoder),
    ):
        prompt, _ = encoder.encode_prompt(past, choice, 0)
        assert decode(prompt) == decode(title_encoder.prefix_ids) + expected
        for item in choice:
            *answer, end = encoder.encode_answer(item)
            assert decode(answer) == " " + by_index[item]
            assert end == TOKENIZER.eos_token_id
    text_only = TextPromptEncoder(title_encoder)
    items = [(title, 0) for title in by_index]
    ids, _ = text_only.encode_prompt(items[: len(history)], items[len(history) :], 0)
    assert decode(ids) == decode(title_encoder.prefix_ids) + expected


def test_a_prompt_without_history_says_so() -> None:
    assert TABLE1.render([], ["a"]).startswith("This user has bought nothing in the previous. ")
    assert BRACES.render([], ["a"]).startswith("This user has bought {} in the previous. ")
    for template in TEMPLATES.values():
        prompt = template.render([], ["lamp", "mug"])
        assert [prompt[:end][-3:] for end in template.title_ends([], ["lamp", "mug"])] == [
            "amp",
            "mug",
        ]


def test_weights_name_their_template_and_without_a_name_have_the_one_of_earlier_releases() -> None:
    for template in TEMPLATES.values():
        assert parse_template(template.to_json(), "prompt.json") == template
    assert parse_template(None, "prompt.json") == UNRECORDED == BRACES
    for damaged in ("", "{}", "[]", '{"template": "table9"}', '{"template": []}'):
        with pytest.raises(RunError, match=r"here: names none of the prompt templates table1, br"):
            parse_template(damaged, "here")


@given(candidates=lists, data=st.data())
def test_an_answer_is_recognised_whatever_its_title_holds(
    candidates: list[str], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(candidates) - 1))
    assert match_exact(candidates[position], candidates) == position


@pytest.mark.parametrize("field", FIELDS)
def test_cleaning_reads_no_template(field: str) -> None:
    assert clean_title(f"Lamp {field} 2") == f"Lamp {field} 2"

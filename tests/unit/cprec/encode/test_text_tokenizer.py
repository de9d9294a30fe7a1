"""A text is text: it never becomes a control token, and begins as its tokenizer begins texts."""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from cluster.errors import DataError, RecipeError
from cprec.encode import text_windows
from cprec.encode.prompt import TABLE1
from cprec.encode.text_tokenizer import TextTokenizer, text_tokenizer
from cprec.encode.title_encoding import build_title_encoding
from cprec.encode.title_tokens import CachedPromptEncoder
from cprec.encode.tokens import TitleEncoder
from cprec.evaluation.perplexity import split_into_windows
from tests.tokenizers import KINDS, byte_level, unigram

WORDS = [
    "Blue",
    "lamp",
    "(2)",
    "mug,",
    "tea}",
    "{12",
    "oz.",
    "Öl",
    "日本",
    "茶",
    "🙂",
    '3.5"',
    "'s",
]
ADDED = [
    AddedToken("<think>", special=False),
    AddedToken("<tool_call>", special=False, normalized=False),
    AddedToken("[gMASK]", special=False, single_word=True),
    AddedToken("|||EMAIL|||", special=False),
    AddedToken("<image_soft_token>", special=True, lstrip=True, rstrip=True),
    AddedToken("<start_of_turn>", special=True, normalized=True),
    AddedToken("<｜end▁of▁sentence｜>", special=True),
    AddedToken("<eos>", special=True),
    AddedToken("}.", special=True),  # the prompt itself holds it
    AddedToken("), ", special=True),  # a title and the prompt together make it
]
CONTROL = [token.content for token in ADDED]
TITLES = [" ".join(WORDS[i : i + 4]) for i in range(len(WORDS) - 3)] * 3

texts = st.lists(
    st.sampled_from(
        [*WORDS, *CONTROL, "<s>", "</s>", "<unk>", "[SEP]", "[UNK]", "</", "s>", "<", ")"]
    )
    | st.text("<>/|[]es（｜a 1", min_size=1, max_size=6),
    min_size=1,
    max_size=6,
).map(" ".join)
plain_texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


@cache
def tokenizer(kind: str, *, with_control: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer that has control tokens of all sorts besides its own."""
    if not with_control:
        return KINDS[kind](TITLES)
    made = deepcopy(tokenizer(kind, with_control=False))
    made.add_tokens(ADDED)
    return made


def ids_of(tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> list[int]:
    ids = [tokenizer.backend_tokenizer.token_to_id(token) for token in tokens]
    return [int(number) for number in ids if number is not None]


def control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids that no text may have; an unknown character does have that of the unknown token."""
    ids = ids_of(tokenizer, [*CONTROL, *tokenizer.all_special_tokens])
    return set(ids) - {tokenizer.unk_token_id}


@pytest.mark.parametrize("kind", KINDS)
@given(history=st.lists(texts, max_size=3), candidates=st.lists(texts, min_size=1, max_size=3))
def test_no_text_becomes_a_control_token(
    kind: str, history: list[str], candidates: list[str]
) -> None:
    encoder = TitleEncoder(tokenizer(kind), 1 << 20, TABLE1)
    prompt, _ = encoder.encode_prompt(history, candidates, 0)
    answer = encoder.encode_answer(candidates[0])
    control = control_ids(tokenizer(kind))
    assert control.isdisjoint(prompt[len(encoder.prefix_ids) :])
    assert control.isdisjoint(answer[:-1])
    assert answer[-1] == tokenizer(kind).eos_token_id
    windows = text_windows.encode_windows(candidates, tokenizer(kind), 1 << 20)
    for window in [
        *windows,
        *split_into_windows(tokenizer(kind), " tea ".join(["mug", *candidates]), 9),
    ]:
        assert control.isdisjoint(window.ids[len(encoder.prefix_ids) :].tolist())


@pytest.mark.parametrize("kind", KINDS)
@given(text=plain_texts)
def test_other_texts_keep_their_tokens(kind: str, text: str) -> None:
    ids = tokenizer(kind, with_control=False)(text, add_special_tokens=False)["input_ids"]
    assert text_tokenizer(tokenizer(kind)).encode(text) == ids


@given(text=texts)
def test_a_control_token_in_a_text_is_decoded_as_it_was_written(text: str) -> None:
    encoder = text_tokenizer(tokenizer("byte-level BPE"))
    assert tokenizer("byte-level BPE").decode(encoder.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_titles_tokenised_once_make_the_same_prompts(kind: str) -> None:
    titles = [*CONTROL, "<s>", "</s> lamp", "a <think> b", *TITLES]
    titles = [title.strip() for title in titles]
    encoding = build_title_encoding(titles, tokenizer(kind), TABLE1)
    assert encoding.title_tokens is not None, encoding.fallback_reason
    cached = CachedPromptEncoder(encoding.title_tokens, 1 << 20)
    encoder = TitleEncoder(tokenizer(kind), 1 << 20, TABLE1)
    for item, title in enumerate(titles):
        assert cached.encode_answer(item) == encoder.encode_answer(title)
    everything = list(range(len(titles)))
    assert cached.encode_prompt(everything, everything, 0) == encoder.encode_prompt(
        titles, titles, 0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_added_words_and_spaces_stay_tokens(kind: str) -> None:
    made = KINDS[kind](TITLES)
    made.add_tokens(["Nintendo", AddedToken("    ", normalized=False)])
    ids = text_tokenizer(made).encode("a Nintendo    lamp")
    assert made.convert_tokens_to_ids("Nintendo") in ids
    assert made.convert_tokens_to_ids("    ") in ids


def test_a_special_token_that_is_a_character_of_the_vocabulary_stays_that_character() -> None:
    made = byte_level(TITLES)
    made.pad_token = "!"
    ids = text_tokenizer(made).encode("Blue lamp!")
    assert made.decode(ids) == "Blue lamp!"


def test_words_that_merge_into_a_control_token_are_spelled_otherwise() -> None:
    letters = {letter: number for number, letter in enumerate("<eos>")}
    vocabulary = {**letters, "<e": 5, "os": 6, "os>": 7, "<eos>": 8}
    merges = [("<", "e"), ("o", "s"), ("os", ">"), ("<e", "os>")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert made("<eos>", split_special_tokens=True)["input_ids"] == [8]
    assert text_tokenizer(made).encode("<eos>") == [5, 7]


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ("$A", []),
        ("<s> $A", ["<s>"]),
        ("<s> $A </s>", ["<s>"]),
        ("$A </s>", []),
        ("[gMASK] <sop> $A", ["[gMASK]", "<sop>"]),
        ("[gMASK] <sop> $A </s>", ["[gMASK]", "<sop>"]),
    ],
)
def test_prompts_begin_as_the_tokenizer_begins_a_text(template: str, prefix: list[str]) -> None:
    made = byte_level(TITLES)
    made.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    names = ["<s>", "</s>", "[gMASK]", "<sop>"]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=list(zip(names, ids_of(made, names), strict=True)),
    )
    begin = ids_of(made, prefix)
    encoder = TitleEncoder(made, 1 << 20, TABLE1)
    prompt, _ = encoder.encode_prompt(["Blue lamp"], ["mug,", "{12"], 0)
    assert prompt[: len(begin)] == begin
    assert control_ids(made).isdisjoint(prompt[len(begin) :])
    assert encoder.encode_answer("mug,").count(made.eos_token_id) == 1
    (window,) = text_windows.encode_windows(["Blue lamp"], made, 99)
    assert window.ids.tolist() == [*begin, *encoder.encode("Blue lamp")]
    # The prefix is given, not predicted.
    assert window.answer_start == max(len(begin), 1)
    assert split_into_windows(made, "Blue lamp", 99)[0].answer_start == max(len(begin), 1)


def test_a_tokenizer_whose_prefix_is_unknown_is_refused() -> None:
    class Shifting:
        eos_token_id = 0

        def __call__(self, text: Any, **options: Any) -> Any:
            return {"input_ids": [len(text), 7 if options["add_special_tokens"] else 8]}

    with pytest.raises(RecipeError, match="what it puts before a text is unknown"):
        TextTokenizer(Shifting())


def test_a_slow_tokenizer_reads_control_tokens_as_text_or_refuses_the_text() -> None:
    slow = ByT5Tokenizer()
    assert not slow.is_fast
    ids = text_tokenizer(slow).encode("a</s><pad>")
    assert set(slow.all_special_ids).isdisjoint(ids)
    assert slow.decode(ids) == "a</s><pad>"

    class Spaced:
        """A slow tokenizer that knows whole words only, `<eos>` among them."""

        eos_token_id = 0
        unk_token_id = 1
        all_special_ids = (0, 1)
        words = ("<eos>", "<unk>", "lamp")

        def __call__(self, text: Any, **options: Any) -> Any:
            known = [word if word in self.words else "<unk>" for word in text.split()]
            return {"input_ids": [self.words.index(word) for word in known]}

    assert text_tokenizer(Spaced()).encode("lamp mug") == [2, 1]
    with pytest.raises(DataError, match="control token of the text 'lamp <eos>'"):
        text_tokenizer(Spaced()).encode("lamp <eos>")


@given(
    st.lists(
        st.tuples(
            plain_texts | st.sampled_from(["🙂", "茶", 'a"', "(b)"]),
            st.sampled_from([", ", "}. ", " "]),
        )
    )
)
def test_parts_end_where_asked_and_make_the_whole_text(pieces: list[tuple[str, str]]) -> None:
    text, ends = "", []
    for title, between in pieces:
        text += title
        ends.append(len(text))
        text += between
    made = tokenizer("byte-level BPE")
    parts = text_tokenizer(made).encode_parts(text, ends)
    assert len(parts) == len(ends) + 1
    for position, end in enumerate(ends):
        ids = [token for part in parts[: position + 1] for token in part]
        assert made.decode(ids) == text[:end]
    assert made.decode([token for part in parts for token in part]) == text


def test_a_token_that_cannot_be_cut_belongs_to_the_part_before() -> None:
    backend = Tokenizer(models.WordLevel({"lamp": 0, "),": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    backend.normalizer = normalizers.NFKC()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert text_tokenizer(made).encode_parts("lamp ), lamp", [6]) == [[0, 1], [0]]
    assert text_tokenizer(made).encode_parts("lamp", [4]) == [[0], []]


def test_a_piece_of_a_unigram_model_that_is_special_is_not_a_word() -> None:
    made = unigram(TITLES)
    assert made("</s>", split_special_tokens=True, add_special_tokens=False)["input_ids"][-1] == 2
    assert 2 not in text_tokenizer(made).encode("</s>")

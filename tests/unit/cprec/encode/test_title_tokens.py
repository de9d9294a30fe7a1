"""Prompts concatenated from title tokens equal those that the tokenizer makes of the whole text.

If they would not, building the title encoding falls back to the tokenizer and gives the reason.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from cluster.errors import DataError
from corpus.ingest.simulation import simulate_shoppers
from corpus.settings import SimulateSettings
from cprec.encode.prompt import BRACES, TABLE1, TEMPLATES, PromptTemplate
from cprec.encode.title_encoding import UncachedPromptEncoder, build_title_encoding, find_difference
from cprec.encode.title_tokens import CachedPromptEncoder, TitleTokens, tokenise_titles
from cprec.encode.tokens import TitleEncoder
from cprec.model.tiny import train_tokenizer
from tests.tokenizers import unigram

SHELVES = simulate_shoppers(
    ("Garden", "Games"), SimulateSettings(users=10, items_per_domain=60), seed=0
).shelves
ODD = [
    "}",
    "{a}.",
    'Lamp, 12"',
    "Öl 5l (2)",
    "'s",
    "...",
    "a}. Choose",
    "x",
    "日本 茶",
    "1,000 pieces,",
    "The answer is {this}",
]
TITLES = [*ODD, *(title for shelf in SHELVES for title in shelf.titles)]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TITLES, 700, BRACES)


def space_in_words_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a tokenizer like that of Llama 2, in which a space is a letter of the word after it.

    It puts a space before every text, and may merge a word with its punctuation.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    texts = [
        TABLE1.render(TITLES[i : i + 3], TITLES[i + 3 : i + 9]) for i in range(0, len(TITLES), 3)
    ]
    tokenizer.train_from_iterator(
        texts,
        BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    tokenizer.pre_tokenizer = None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "byte-level": byte_level_tokenizer(),
    "space in words": space_in_words_tokenizer(),
}
TITLE_TOKENS = {
    template.name: {
        name: tokenise_titles(TITLES, tokenizer, template) for name, tokenizer in TOKENIZERS.items()
    }
    for template in TEMPLATES.values()
}

ITEMS = st.integers(0, len(TITLES) - 1)
SAMPLES = st.fixed_dictionaries(
    {
        "history": st.lists(ITEMS, max_size=10),
        "candidates": st.lists(ITEMS, min_size=1, max_size=20),
        "target": st.integers(0, 19),
    }
)


def table(samples: list[dict[str, Any]]) -> pa.Table:
    rows = [{**row, "target": row["target"] % len(row["candidates"])} for row in samples]
    schema = pa.schema(
        {"history": pa.list_(pa.int64()), "candidates": pa.list_(pa.int64()), "target": pa.int8()}
    )
    return pa.Table.from_pylist(rows, schema=schema)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
@given(samples=st.lists(SAMPLES, max_size=5))
def test_cached_samples_are_those_of_the_tokenizer(
    name: str, template: PromptTemplate, samples: list[dict[str, Any]]
) -> None:
    rows = table(samples)
    tokenizer = TOKENIZERS[name]
    for row, encoded in zip(
        rows.to_pylist(),
        CachedPromptEncoder(TITLE_TOKENS[template.name][name], 1 << 20).encode_samples(rows),
        strict=True,
    ):
        history, candidates = ([TITLES[i] for i in row[key]] for key in ("history", "candidates"))
        text = template.render(history, candidates)
        whole = tokenizer(f"{text} {candidates[row['target']]}", add_special_tokens=False)[
            "input_ids"
        ]
        prefix = tokenizer("")["input_ids"]
        assert encoded.ids.tolist() == [*prefix, *whole, tokenizer.eos_token_id]
        assert encoded.answer_start == len(prefix) + len(
            tokenizer(text, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.parametrize("name", TOKENIZERS)
@given(samples=st.lists(SAMPLES, min_size=1, max_size=4), short=st.integers(0, 60))
def test_cached_and_uncached_encoders_drop_the_same_history(
    name: str, samples: list[dict[str, Any]], short: int
) -> None:
    rows = table(samples)
    limit = (
        max(
            len(s.ids)
            for s in CachedPromptEncoder(TITLE_TOKENS["table1"][name], 1 << 20).encode_samples(rows)
        )
        - short
    )
    encoders = (
        CachedPromptEncoder(TITLE_TOKENS["table1"][name], limit),
        UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZERS[name], limit, TABLE1)),
    )
    outcomes: list[Any] = []
    for encoder in encoders:
        try:
            outcomes.append(
                [
                    (s.ids.tolist(), s.answer_start, s.dropped_titles)
                    for s in encoder.encode_samples(rows)
                ]
            )
        except DataError:
            outcomes.append("too long")
    assert outcomes[0] == outcomes[1]


@given(SAMPLES, st.integers(0, 30))
def test_cached_and_uncached_prompts_and_answers_are_equal(
    sample: dict[str, Any], reserved_tokens: int
) -> None:
    row = table([sample]).to_pylist()[0]
    encoders = (
        CachedPromptEncoder(TITLE_TOKENS["table1"]["byte-level"], 4000),
        UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZERS["byte-level"], 4000, TABLE1)),
    )
    prompts = [
        encoder.encode_prompt(row["history"], row["candidates"], reserved_tokens)
        for encoder in encoders
    ]
    assert prompts[0] == prompts[1]
    answers = [encoder.encode_answer(row["candidates"][0]) for encoder in encoders]
    assert answers[0] == answers[1]


def test_rows_may_be_a_slice_of_a_table() -> None:
    rows = table(
        [
            {"history": [i, i + 1], "candidates": [i + 2, i + 3, i + 4], "target": i % 3}
            for i in range(8)
        ]
    )
    encoder = CachedPromptEncoder(TITLE_TOKENS["table1"]["byte-level"], 1 << 20)
    whole = encoder.encode_samples(rows)
    part = encoder.encode_samples(rows.slice(3, 4))
    assert [s.ids.tolist() for s in part] == [s.ids.tolist() for s in whole[3:7]]


def test_right_title_tokens_pass_the_comparison_and_wrong_ones_fail_it() -> None:
    assert build_title_encoding(TITLES, TOKENIZERS["byte-level"], TABLE1).fallback_reason == ""
    tokens = TITLE_TOKENS["table1"]["byte-level"]
    spoiled = TitleTokens(
        np.where(tokens.ids == tokens.ids[-1], 0, tokens.ids), tokens.offsets, tokens.eos_token_id
    )
    assert "differs from the tokenizer's at token" in find_difference(
        TITLES, spoiled, TOKENIZERS["byte-level"], TABLE1
    )


def test_a_tokenizer_that_looks_across_words_is_called_on_whole_texts() -> None:
    class CountingTokenizer:
        """Tokenizer whose tokens of a word depend on the words before it."""

        bos_token_id = None
        eos_token_id = 0

        def __call__(self, text: Any, **options: Any) -> Any:
            if isinstance(text, list):
                return {
                    "input_ids": [self(one, add_special_tokens=False)["input_ids"] for one in text]
                }
            words = text.split(" ")
            ids = []
            steel_count = 0
            for word in words:
                steel_count += word.startswith("Steel")
                ids += [
                    1 + sum(map(ord, word)) % 1000,
                    *([2000 + steel_count] if word.startswith("Steel") else []),
                ]
            return {"input_ids": ids if words != [""] else []}

    titles = [f"Steel lamp {i}" for i in range(30)]
    encoding = build_title_encoding(titles, CountingTokenizer(), TABLE1)
    assert encoding.title_tokens is None
    assert list(encoding.titles) == titles
    assert "a stitched prompt differs" in encoding.fallback_reason


@pytest.mark.parametrize("known", [0, 1, 50, len(TITLES)])
def test_only_new_titles_are_tokenised_when_a_corpus_gains_items(known: int) -> None:
    class RecordingTokenizer:
        bos_token_id = TOKENIZERS["byte-level"].bos_token_id
        eos_token_id = TOKENIZERS["byte-level"].eos_token_id
        text_count = 0

        def __call__(self, text: Any, **options: Any) -> Any:
            self.text_count += len(text) if isinstance(text, list) else 1
            return TOKENIZERS["byte-level"](text, **options)

    whole = TITLE_TOKENS["table1"]["byte-level"]
    recording = RecordingTokenizer()
    extended = build_title_encoding(
        TITLES, recording, TABLE1, tokenise_titles(TITLES[:known], TOKENIZERS["byte-level"], TABLE1)
    ).title_tokens
    assert extended is not None
    assert np.array_equal(extended.ids, whole.ids)
    assert np.array_equal(extended.offsets, whole.offsets)
    assert known < len(TITLES) or recording.text_count < 200


def test_a_single_title_whose_words_depend_on_each_other_is_found() -> None:
    """NFKC makes a space and an accent of `´`; no random prompt is needed to meet the title."""
    titles = [*(f"Steel lamp {i}" for i in range(5000)), "Cap ´n Crunch"]
    encoding = build_title_encoding(titles, unigram(TITLES), TABLE1)
    assert "the title 'Cap ´n Crunch'" in encoding.fallback_reason
    assert build_title_encoding(titles[:-1], unigram(TITLES), TABLE1).title_tokens is not None


def test_title_tokens_of_no_titles() -> None:
    empty = tokenise_titles([], TOKENIZERS["byte-level"], TABLE1)
    assert empty.num_items == 0
    assert CachedPromptEncoder(empty, 100).encode_samples(table([])) == []


def test_encoding_and_streaming_import_nothing_that_they_do_not_use(tmp_path: Path) -> None:
    script = (
        "import sys, cprec.encode.title_tokens, cprec.stream.segments; "
        "sys.exit(', '.join({'transformers', 'polars', 'aiohttp'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)

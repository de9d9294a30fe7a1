"""Stitched prompts are the tokenizer's own, for every history, every candidate and every cut of history; where they are not, the reason is told."""

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
from cprec.encode import prompt
from cprec.encode.title_tokens import (
    CachedPromptEncoder,
    UncachedPromptEncoder,
    build_title_encoding,
    find_difference,
    tokenise_titles,
)
from cprec.encode.tokens import TitleEncoder
from cprec.model.tiny import train_tokenizer

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


def byte_level() -> PreTrainedTokenizerFast:
    return train_tokenizer(TITLES, vocab_size=700)


def sentences() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is a letter of the words, which a text starts with though it is not there; any word may grow together with its signs."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    texts = [
        prompt.render_prompt(TITLES[i : i + 3], TITLES[i + 3 : i + 9])
        for i in range(0, len(TITLES), 3)
    ]
    tokenizer.train_from_iterator(
        texts,
        BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    tokenizer.pre_tokenizer = None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {"byte-level": byte_level(), "space in words": sentences()}
PIECES = {name: tokenise_titles(TITLES, tokenizer) for name, tokenizer in TOKENIZERS.items()}

items = st.integers(0, len(TITLES) - 1)
sample = st.fixed_dictionaries(
    {
        "history": st.lists(items, max_size=10),
        "candidates": st.lists(items, min_size=1, max_size=20),
        "target": st.integers(0, 19),
    }
)


def table(found: list[dict[str, Any]]) -> pa.Table:
    rows = [{**row, "target": row["target"] % len(row["candidates"])} for row in found]
    schema = pa.schema(
        {"history": pa.list_(pa.int64()), "candidates": pa.list_(pa.int64()), "target": pa.int8()}
    )
    return pa.Table.from_pylist(rows, schema=schema)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(found=st.lists(sample, max_size=5))
def test_stitched_samples_are_those_of_the_tokenizer(
    name: str, found: list[dict[str, Any]]
) -> None:
    rows, tokenizer = table(found), TOKENIZERS[name]
    for row, seen in zip(
        rows.to_pylist(),
        CachedPromptEncoder(PIECES[name], 1 << 20).encode_samples(rows),
        strict=True,
    ):
        history, candidates = ([TITLES[i] for i in row[key]] for key in ("history", "candidates"))
        text = prompt.render_prompt(history, candidates)
        whole = tokenizer(f"{text} {candidates[row['target']]}", add_special_tokens=False)[
            "input_ids"
        ]
        assert seen.ids.tolist() == [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
        assert seen.answer_start == 1 + len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
@given(found=st.lists(sample, min_size=1, max_size=4), short=st.integers(0, 60))
def test_history_is_dropped_as_the_tokenizer_way_drops_it(
    name: str, found: list[dict[str, Any]], short: int
) -> None:
    rows = table(found)
    limit = (
        max(len(s.ids) for s in CachedPromptEncoder(PIECES[name], 1 << 20).encode_samples(rows))
        - short
    )
    encoders = (
        CachedPromptEncoder(PIECES[name], limit),
        UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZERS[name], limit)),
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


@given(sample, st.integers(0, 30))
def test_prompts_and_answers_one_by_one_are_the_same(one: dict[str, Any], room: int) -> None:
    row = table([one]).to_pylist()[0]
    encoders = (
        CachedPromptEncoder(PIECES["byte-level"], 4000),
        UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZERS["byte-level"], 4000)),
    )
    prompts = [
        encoder.encode_prompt(row["history"], row["candidates"], room) for encoder in encoders
    ]
    assert prompts[0] == prompts[1]
    answers = [encoder.encode_answer(row["candidates"][0]) for encoder in encoders]
    assert answers[0] == answers[1]


def test_rows_that_are_a_slice_of_others() -> None:
    rows = table(
        [
            {"history": [i, i + 1], "candidates": [i + 2, i + 3, i + 4], "target": i % 3}
            for i in range(8)
        ]
    )
    stitcher = CachedPromptEncoder(PIECES["byte-level"], 1 << 20)
    whole, part = stitcher.encode_samples(rows), stitcher.encode_samples(rows.slice(3, 4))
    assert [s.ids.tolist() for s in part] == [s.ids.tolist() for s in whole[3:7]]


def test_the_reason_for_a_fall_back() -> None:
    assert build_title_encoding(TITLES, TOKENIZERS["byte-level"]).fallback_reason == ""
    pieces = PIECES["byte-level"]
    spoiled = type(pieces)(
        np.where(pieces.ids == pieces.ids[-1], 0, pieces.ids), pieces.offsets, pieces.eos_token_id
    )
    assert "differs from the tokenizer's at token" in find_difference(
        TITLES, spoiled, TOKENIZERS["byte-level"]
    )


def test_a_tokenizer_that_looks_across_words_falls_back_and_says_why() -> None:
    """The number of a word depends on the words before it, so that no word stands for itself."""

    class Counting:
        bos_token_id, eos_token_id = None, 0

        def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
            if isinstance(text, list):
                return {
                    "input_ids": [self(one, add_special_tokens=False)["input_ids"] for one in text]
                }
            words, ids, steel = text.split(" "), [], 0
            for word in words:
                steel += word.startswith("Steel")
                ids += [
                    1 + sum(map(ord, word)) % 1000,
                    *([2000 + steel] if word.startswith("Steel") else []),
                ]
            return {"input_ids": ids if words != [""] else []}

    titles = [f"Steel lamp {i}" for i in range(30)]
    words = build_title_encoding(titles, Counting())
    assert words.title_tokens is None
    assert list(words.titles) == titles
    assert "a stitched prompt differs" in words.fallback_reason


@pytest.mark.parametrize("known", [0, 1, 50, len(TITLES)])
def test_only_new_titles_are_tokenised_when_items_join(known: int) -> None:
    class Listening:
        bos_token_id, eos_token_id = (
            TOKENIZERS["byte-level"].bos_token_id,
            TOKENIZERS["byte-level"].eos_token_id,
        )
        texts = 0

        def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
            self.texts += len(text) if isinstance(text, list) else 1
            return TOKENIZERS["byte-level"](text, add_special_tokens=add_special_tokens)

    whole, listening = PIECES["byte-level"], Listening()
    grown = build_title_encoding(
        TITLES, listening, tokenise_titles(TITLES[:known], TOKENIZERS["byte-level"])
    ).title_tokens
    assert grown is not None
    assert np.array_equal(grown.ids, whole.ids)
    assert np.array_equal(grown.offsets, whole.offsets)
    assert known < len(TITLES) or listening.texts < 200


def test_title_tokens_of_no_titles() -> None:
    empty = tokenise_titles([], TOKENIZERS["byte-level"])
    assert empty.item_count == 0
    assert CachedPromptEncoder(empty, 100).encode_samples(table([])) == []


def test_stitching_imports_no_transformers(tmp_path: Path) -> None:
    script = "import sys, cprec.encode.title_tokens, cprec.stream.segments; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0

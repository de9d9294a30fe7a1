"""Windows of text as samples: each token once and supervised, in its place among prompts."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from corpus.sampling.replay_text import MAX_WINDOW_BYTES, split_text
from cprec.encode import text_windows
from cprec.encode.prompt import TABLE1
from cprec.encode.tokens import EncodedSample
from cprec.model.tiny import train_tokenizer

TOKENIZER = train_tokenizer(["oak lamp", "steel mug"], 300, TABLE1)
PROSE = st.lists(
    st.text(st.sampled_from("oak lmp,.é"), min_size=1, max_size=12), min_size=1, max_size=60
).map(" ".join)


class TokenizerWithoutBos:
    """TOKENIZER, but without a token that begins texts."""

    bos_token_id = None
    eos_token_id = TOKENIZER.eos_token_id

    def __call__(self, text: Any, **options: Any) -> Any:
        return TOKENIZER(text, **{**options, "add_special_tokens": False})


@given(PROSE, st.integers(26, 80))
def test_every_token_of_a_text_is_in_one_window_and_supervised(text: str, size: int) -> None:
    """Holds where every word fits into a window; a longer one is cut, which changes its tokens."""
    samples = text_windows.encode_windows(split_text(text, size), TOKENIZER, 512)
    whole = TOKENIZER(text.rstrip(), add_special_tokens=False)["input_ids"]
    assert [i for s in samples for i in s.ids[s.answer_start :].tolist()] == whole
    assert all(s.ids[0] == TOKENIZER.bos_token_id for s in samples)
    assert all(len(s.ids) <= size + 1 for s in samples)


def test_without_a_begin_token_the_first_token_is_not_supervised() -> None:
    [sample] = text_windows.encode_windows(["oak lamp, steel mug"], TokenizerWithoutBos(), 512)
    assert sample.answer_start == 1
    assert (
        sample.ids.tolist()
        == TOKENIZER("oak lamp, steel mug", add_special_tokens=False)["input_ids"]
    )


class SampleIdEncoder:
    """Encoder whose prompts are two tokens: the sample's id and 0."""

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        return [EncodedSample(np.array([i, 0]), 1, 0) for i in rows["sample_id"].to_pylist()]


@given(st.lists(st.booleans(), max_size=20))
def test_each_row_gets_its_own_tokens(is_window: list[bool]) -> None:
    texts = [f"lamp {i}" if flag else None for i, flag in enumerate(is_window)]
    rows = pa.table(
        {
            "sample_id": pa.array(range(len(is_window)), pa.int64()),
            "text": pa.array(texts, pa.string()),
        }
    )
    samples = text_windows.encode_samples(rows, SampleIdEncoder(), TOKENIZER, 512)
    for sample_id, (sample, text) in enumerate(zip(samples, texts, strict=True)):
        if text is None:
            assert sample.ids.tolist() == [sample_id, 0]
        else:
            assert TOKENIZER.decode(sample.ids[1:]) == text


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"takes 501 tokens, and model.max_tokens is 400"):
        text_windows.encode_windows(["ö" * (MAX_WINDOW_BYTES // 2)], TOKENIZER, 400)

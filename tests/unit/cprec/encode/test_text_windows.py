"""Windows of text as samples: every token of the text once, all of them supervised, in their places among prompts."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from corpus.sampling.replay_text import MAX_WINDOW_BYTES, split_text
from cprec.encode import text_windows
from cprec.encode.tokens import EncodedSample
from cprec.model.tiny import train_tokenizer

TOKENIZER = train_tokenizer(["oak lamp", "steel mug"], 300)
PROSE = st.lists(
    st.text(st.sampled_from("oak lmp,.é"), min_size=1, max_size=12), min_size=1, max_size=60
).map(" ".join)


class NoBegin:
    """The same tokenizer, of the kind that opens texts with no token of its own."""

    bos_token_id = None
    eos_token_id = TOKENIZER.eos_token_id

    def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
        return TOKENIZER(text, add_special_tokens=add_special_tokens)


@given(PROSE, st.integers(26, 80))
def test_every_token_of_a_text_is_in_one_window_and_supervised(text: str, size: int) -> None:
    """Where words fit into windows; a longer one is cut, and its pieces are tokenised apart."""
    found = text_windows.encode_windows(split_text(text, size), TOKENIZER, 512)
    whole = TOKENIZER(text.rstrip(), add_special_tokens=False)["input_ids"]
    assert [i for t in found for i in t.ids[t.answer_start :].tolist()] == whole
    assert all(t.ids[0] == TOKENIZER.bos_token_id for t in found)
    assert all(len(t.ids) <= size + 1 for t in found)


def test_without_a_token_that_opens_texts_the_first_has_nothing_before_it() -> None:
    [found] = text_windows.encode_windows(["oak lamp, steel mug"], NoBegin(), 512)
    assert found.answer_start == 1
    assert (
        found.ids.tolist()
        == TOKENIZER("oak lamp, steel mug", add_special_tokens=False)["input_ids"]
    )


class Echo:
    """Prompts of one token: the sample's id."""

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        return [EncodedSample(np.array([i, 0]), 1, 0) for i in rows["sample_id"].to_pylist()]


@given(st.lists(st.booleans(), max_size=20))
def test_each_row_gets_its_own_tokens(is_text: list[bool]) -> None:
    values = [f"lamp {i}" if found else None for i, found in enumerate(is_text)]
    rows = pa.table(
        {
            "sample_id": pa.array(range(len(is_text)), pa.int64()),
            "text": pa.array(values, pa.string()),
        }
    )
    found = text_windows.encode_samples(rows, Echo(), lambda: TOKENIZER, 512)
    for number, (tokens, value) in enumerate(zip(found, values, strict=True)):
        if value is None:
            assert tokens.ids.tolist() == [number, 0]
        else:
            assert TOKENIZER.decode(tokens.ids[1:]) == value


def test_rows_without_text_ask_for_no_tokenizer() -> None:
    rows = pa.table({"sample_id": pa.array([7], pa.int64())})
    [found] = text_windows.encode_samples(
        rows, Echo(), lambda: pytest.fail("the tokenizer was loaded"), 512
    )
    assert found.ids.tolist() == [7, 0]


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"takes 501 tokens, and model.max_tokens is 400"):
        text_windows.encode_windows(["ö" * (MAX_WINDOW_BYTES // 2)], TOKENIZER, 400)

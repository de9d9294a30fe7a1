"""Encoding the rows of a corpus, without Ray's object store."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import DataError, RecipeError
from corpus.store.tables import Corpus
from cprec.encode.prompt import TABLE1
from cprec.encode.title_tokens import TitleTokens
from cprec.encode.tokens import EncodedSample
from cprec.model import backbone
from cprec.stream import row_encoder
from cprec.stream.row_encoder import (
    PROBED_TITLES,
    RowEncoder,
    find_fallback_reason,
    require_tokens_can_be_shared,
)
from cprec.stream.sharing_groups import NO_SHARING, TokenSharing
from tests.tokenizers import unigram


class SampleIdEncoder:
    """Encoder whose prompts are two tokens: the sample's id and 0."""

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        return [EncodedSample(np.array([i, 0]), 1, 0) for i in rows["sample_id"].to_pylist()]


class RowEncoderOfSampleIds(RowEncoder):
    """Encodes sample ids, not titles."""

    def load_prompt_encoder(self) -> Any:
        return SampleIdEncoder()


def test_rows_without_text_load_no_tokenizer() -> None:
    no_titles: Any = None
    encoder = RowEncoderOfSampleIds("/no/such/base", None, 512, TABLE1, no_titles)
    [sample] = encoder.encode_rows(pa.table({"sample_id": pa.array([7], pa.int64())}))
    assert sample.ids.tolist() == [7, 0]


PLAIN = [f"Steel lamp {number}" for number in range(2 * PROBED_TITLES + 1)]
ODD = "Cap ´n Crunch"
"""A title that `unigram` does not tokenise word by word."""


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps objects as their own references, and loads a tokenizer that finds ODD odd."""
    store = SimpleNamespace(put=lambda value: value, get=lambda value: value)
    monkeypatch.setattr(row_encoder, "ray", store)
    tokenizer = unigram(PLAIN[:50])
    monkeypatch.setattr(backbone, "load_tokenizer", lambda base, revision: tokenizer)


def corpus_of(titles: list[str], version: int = 0) -> Corpus:
    corpus: Any = SimpleNamespace(uri="c", version=version, read_titles=lambda: titles)
    return corpus  # type: ignore[no-any-return]


def encode(titles: list[str], sharing: TokenSharing) -> RowEncoder:
    return RowEncoder.from_corpus(corpus_of(titles), "b", None, 512, TABLE1, sharing)


@pytest.mark.usefixtures("object_store")
@pytest.mark.parametrize("sharing", [TokenSharing(4, 0), TokenSharing(1, 8)])
def test_titles_that_forbid_sharing_are_refused_wherever_they_stand(sharing: TokenSharing) -> None:
    odd_second = [PLAIN[0], ODD, *PLAIN[2:]]
    assert find_fallback_reason(corpus_of(odd_second), "b", None, TABLE1) is None
    with pytest.raises(DataError, match=r"c, version 0: samples share tokens only .*Cap ´n Crunch"):
        encode(odd_second, sharing)
    encoder = encode(PLAIN[:9], sharing)
    assert isinstance(encoder.titles_ref, TitleTokens)
    with pytest.raises(DataError, match=r"c, version 1: samples share tokens only .*Cap ´n Crunch"):
        encoder.with_titles_of(corpus_of([*PLAIN[:9], ODD], 1))
    assert encoder.with_titles_of(corpus_of(PLAIN[:8])) is encoder


@pytest.mark.usefixtures("object_store")
def test_without_sharing_an_encoder_says_why_it_keeps_texts() -> None:
    encoder = encode(PLAIN[:9], NO_SHARING)
    assert encoder.fallback_reason == ""
    appended = encoder.with_titles_of(corpus_of([*PLAIN[:9], ODD], 1))
    assert appended.titles_ref == (*PLAIN[:9], ODD)
    assert ODD in appended.fallback_reason
    reason = find_fallback_reason(corpus_of([ODD]), "b", None, TABLE1)
    require_tokens_can_be_shared("", reason)
    with pytest.raises(RecipeError, match=r"targets_per_pass: samples share tokens only .*Crunch"):
        require_tokens_can_be_shared("train.targets_per_pass", reason)

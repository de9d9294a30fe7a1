"""Samples made of windows of plain text, in which every token is supervised. Pure.

A segment may mix windows of text with prompts, row by row (docs/decisions/010-replay.md).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import DataError
from cprec.encode.text_tokenizer import Tokenizer, text_tokenizer
from cprec.encode.tokens import EncodedSample


class PromptRowEncoder(Protocol):
    """Encoder of corpus rows that hold prompts (cprec.encode.title_tokens)."""

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """Encodes corpus rows, in their order."""


def without_windows(rows: pa.Table) -> pa.Table:
    """Returns the corpus rows that hold prompts, in their order."""
    return rows.filter(pc.is_null(rows["text"])) if "text" in rows.column_names else rows


def encode_samples(
    rows: pa.Table,
    prompt_encoder: PromptRowEncoder,
    tokenizer: Tokenizer,
    max_tokens: int,
) -> list[EncodedSample]:
    """Encodes corpus rows, in their order, each of which holds a prompt or a window of text.

    Args:
        rows: Corpus rows; those with a value in the column `text` are windows.
        prompt_encoder: Encoder of the other rows.
        tokenizer: Tokenizer for windows.
        max_tokens: Maximum length of a sample, in tokens.

    Raises:
        DataError: A window is longer than `max_tokens`, or `prompt_encoder` refused a prompt.
    """
    is_window = pc.is_valid(rows["text"])
    texts = rows["text"].drop_null().to_pylist()
    windows = iter(encode_windows(texts, tokenizer, max_tokens))
    prompt_rows = without_windows(rows)
    prompts = iter(prompt_encoder.encode_samples(prompt_rows) if len(prompt_rows) else [])
    # Each iterator is in the order of the rows, so taking from one or the other restores it.
    return [next(windows) if flag else next(prompts) for flag in is_window.to_pylist()]


def encode_windows(
    texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int
) -> list[EncodedSample]:
    """Encodes windows of text, with every token supervised that has a token before it.

    That is every token of the text if the tokenizer begins texts with tokens of its own, else all
    but the first. There is no end token, because a window does not end where its text ends.

    Args:
        texts: The windows.
        tokenizer: Tokenizer of the base model.
        max_tokens: Maximum length of a window, in tokens.

    Raises:
        DataError: A window is longer than `max_tokens`.
    """
    encoder = text_tokenizer(tokenizer)
    prefix = encoder.prefix_ids
    windows = [prefix + ids for ids in encoder.encode_all(texts)]
    if longest := max((len(ids) for ids in windows if len(ids) > max_tokens), default=0):
        raise DataError(
            f"a window of replayed text takes {longest} tokens, "
            f"and model.max_tokens is {max_tokens}: raise it"
        )
    return [
        EncodedSample(
            np.array(ids, dtype=np.int32), answer_start=max(len(prefix), 1), dropped_titles=0
        )
        for ids in windows
    ]

"""Windows of plain text as samples: every token is supervised (plain next-token loss). They share segments with prompts, row by row. Pure."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import DataError
from cprec.encode.tokens import EncodedSample, Tokenizer, bos_ids


class SampleEncoder(Protocol):
    """What makes tokens of rows that hold a prompt (cprec.encode.title_tokens)."""

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """Tokens of corpus rows, in their order."""


def encode_samples(
    rows: pa.Table,
    prompt_encoder: SampleEncoder,
    load_tokenizer: Callable[[], Tokenizer],
    max_tokens: int,
) -> list[EncodedSample]:
    """Tokens of corpus rows, in their order, whether they hold a prompt or a window of text. tokenizer: called only where there is a window.

    Raises DataError for a window, or as `prompts` does for a prompt, of more than max_tokens tokens.
    """
    if "text" not in rows.column_names:
        return prompt_encoder.encode_samples(rows)
    is_text = pc.is_valid(rows["text"])
    texts = iter(encode_windows(rows["text"].drop_null().to_pylist(), load_tokenizer(), max_tokens))
    rest = rows.filter(pc.invert(is_text))
    others = iter(prompt_encoder.encode_samples(rest) if len(rest) else [])
    return [next(texts) if found else next(others) for found in is_text.to_pylist()]


def encode_windows(
    texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int
) -> list[EncodedSample]:
    """Tokens of windows. Supervised is what has a token before it: all but the first where the tokenizer opens texts with no token of its own.

    No end token: a window ends where the next one begins, not where the text does.
    """
    begin = bos_ids(tokenizer)
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    cut = [begin + list(ids) for ids in found]
    if longest := max((len(ids) for ids in cut if len(ids) > max_tokens), default=0):
        raise DataError(
            f"a window of replayed text takes {longest} tokens, and model.max_tokens is {max_tokens}: raise it"
        )
    return [
        EncodedSample(
            np.array(ids, dtype=np.int32), answer_start=max(len(begin), 1), dropped_titles=0
        )
        for ids in cut
    ]

"""Computes the perplexity of plain text, which shows how much language a model keeps.

Pure torch; no Ray, no I/O.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from cluster.errors import RecipeError
from cprec.encode.text_tokenizer import text_tokenizer
from cprec.encode.tokens import EncodedSample

MAX_LOSS = 700.0
"""Largest mean loss, in nats, that has a perplexity of its own; exp of more overflows a float."""


@torch.inference_mode()
def compute_perplexity(
    model: Any, tokenizer: PreTrainedTokenizerBase, text: str, window_tokens: int
) -> float:
    """Computes exp of the mean loss per token over a whole text.

    The text is cut into windows that know nothing of each other.

    Args:
        model: The model, in evaluation mode, on the device where it is to compute.
        tokenizer: Its tokenizer.
        text: The text.
        window_tokens: Tokens of a window, at most.

    Raises:
        RecipeError: The text has fewer than two tokens.
    """
    total_loss = 0.0
    num_tokens = 0
    for window in split_into_windows(tokenizer, text, window_tokens):
        ids = torch.from_numpy(window.ids).long().to(model.device)
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        predictors = logits[window.answer_start - 1 : -1]
        targets = ids[window.answer_start :]
        total_loss += float(F.cross_entropy(predictors, targets, reduction="sum"))
        num_tokens += len(targets)
    return from_loss(total_loss, num_tokens)


def split_into_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window_tokens: int, max_tokens: int | None = None
) -> list[EncodedSample]:
    """Cuts a text into windows of tokens.

    Each window begins with the tokens that the tokenizer puts before a text, if there are any.
    Then every token of the text counts. Else the first token of a window does not, because nothing
    predicts it. Windows without a token that counts are left out.

    Args:
        tokenizer: The model's tokenizer.
        text: The text.
        window_tokens: Tokens of a window, at most, those before the text included.
        max_tokens: Tokens of the text that are used, from its beginning; None uses all.

    Returns:
        Each window, in which the tokens that count are supervised.

    Raises:
        RecipeError: No token of the text counts.
    """
    encoder = text_tokenizer(tokenizer)
    prefix = encoder.prefix_ids
    ids = encoder.encode(text)[:max_tokens]
    step = window_tokens - len(prefix)
    windows = [prefix + ids[start : start + step] for start in range(0, len(ids), step)]
    first = max(len(prefix), 1)
    if not (counted := [window for window in windows if len(window) > first]):
        raise RecipeError(
            f"evaluate.text: a text of {len(ids)} token(s) has no perplexity; give a longer one"
        )
    return [
        EncodedSample(np.array(window, dtype=np.int32), answer_start=first, dropped_titles=0)
        for window in counted
    ]


def from_loss(loss: float, tokens: int) -> float:
    """Returns the perplexity of a loss, in nats, that is summed over a number of tokens."""
    return math.exp(min(loss / tokens, MAX_LOSS))

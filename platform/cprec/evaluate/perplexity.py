"""Computes the perplexity of plain text, which shows how much language a model keeps.

Pure torch; no Ray, no I/O.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from cluster.errors import RecipeError

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
    token_count = 0
    for ids in split_into_windows(tokenizer, text, window_tokens):
        window = torch.tensor([ids], device=model.device)
        logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        total_loss += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
        token_count += len(ids) - 1
    return from_loss(total_loss, token_count)


def split_into_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window_tokens: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Cuts a text into windows of tokens.

    Each window begins with the tokenizer's opening token, if it has one. The first token of a
    window is not predicted, so it does not count. With an opening token, every token of the text
    counts. Windows without a token that counts are left out.

    Args:
        tokenizer: The model's tokenizer.
        text: The text.
        window_tokens: Tokens of a window, at most, its opening token included.
        max_tokens: Tokens of the text that are used, from its beginning; None uses all.

    Returns:
        Token ids of each window.

    Raises:
        RecipeError: No token of the text counts.
    """
    opening = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:max_tokens]
    step = window_tokens - len(opening)
    windows = [opening + ids[start : start + step] for start in range(0, len(ids), step)]
    if not (counted := [window for window in windows if len(window) > 1]):
        raise RecipeError(
            f"evaluate.text: a text of {len(ids)} token(s) has no perplexity; give a longer one"
        )
    return counted


def from_loss(loss: float, tokens: int) -> float:
    """Returns the perplexity of a loss, in nats, that is summed over a number of tokens."""
    return math.exp(min(loss / tokens, MAX_LOSS))

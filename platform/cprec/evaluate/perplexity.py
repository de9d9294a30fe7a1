"""Perplexity of plain text: how much of its language a model keeps while it learns tastes. Pure torch; no Ray, no I/O."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from cluster.errors import RecipeError

MAX_LOSS = 700.0
"""Mean loss, in nats, above which a perplexity is no more told apart: e to much more is no float."""


@torch.inference_mode()
def compute_perplexity(
    model: Any, tokenizer: PreTrainedTokenizerBase, text: str, window_tokens: int
) -> float:
    """exp of the mean loss per token over the whole text, in nats, cut into windows of `length` tokens, each of which begins anew.

    The model computes on the device where it is, in evaluation mode. Raises RecipeError for a text of less than two tokens.
    """
    total, count = 0.0, 0
    for ids in split_into_windows(tokenizer, text, window_tokens):
        window = torch.tensor([ids], device=model.device)
        logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
        count += len(ids) - 1
    return from_loss(total, count)


def split_into_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window_tokens: int, max_tokens: int | None = None
) -> list[list[int]]:
    """A text as windows of at most `length` tokens, each begun as the tokenizer begins texts; of its first `most` tokens only, if that is given.

    The first token of a window has nothing before it and does not count; so no token is lost where the tokenizer opens texts with one of its own.
    Windows without a token that counts are left out. Raises RecipeError for a text without any.
    """
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:max_tokens]
    step = window_tokens - len(begin)
    found = [begin + ids[at : at + step] for at in range(0, len(ids), step)]
    if not (counted := [window for window in found if len(window) > 1]):
        raise RecipeError(
            f"evaluate.text: a text of {len(ids)} token(s) has no perplexity; give a longer one"
        )
    return counted


def from_loss(loss: float, tokens: int) -> float:
    """The perplexity of a summed loss, in nats, over a number of tokens."""
    return math.exp(min(loss / tokens, MAX_LOSS))

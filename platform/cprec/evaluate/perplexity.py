"""Perplexity of plain text: how much of its language a model keeps while it learns tastes. Pure torch; no Ray, no I/O."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from cluster.errors import RecipeError


@torch.inference_mode()
def perplexity(model: Any, tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> float:
    """exp of the mean loss per token over the whole text, in nats, cut into windows of `length` tokens, each of which begins anew.

    The first token of a window has nothing before it and is not counted, unless the tokenizer opens texts with a token of its own. The model computes
    on the device where it is, in evaluation mode. Raises RecipeError for a text of less than two tokens.
    """
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    step = length - len(begin)
    total, count = 0.0, 0
    for at in range(0, len(ids), step):
        window = torch.tensor([begin + ids[at : at + step]], device=model.device)
        if window.shape[1] > 1:
            logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
            total += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
            count += window.shape[1] - 1
    if not count:
        raise RecipeError(f"evaluate.text: a text of {len(ids)} token(s) has no perplexity; give a longer one")
    return math.exp(total / count)

"""Two ways to get the next token's logits again and again. Pure torch.

With a cache, prompts of a batch are padded on the left, and a step reads one token of each. Models
whose layers keep a state of their own take neither the padding nor this cache; for them every step
computes all tokens again, padded on the right, which no causal model sees.
"""

from collections.abc import Sequence
from typing import Any

import torch


class CachedDecoder:
    """Decoder with one cache of keys and values, which grows by a token per step."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int) -> None:
        """Pads the prompts on the left."""
        self._model = model
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        self._ids = torch.tensor(
            [
                [pad_token_id] * pad + list(prompt)
                for pad, prompt in zip(padding, prompts, strict=True)
            ],
            device=model.device,
        )
        self._mask = torch.tensor(
            [[0] * pad + [1] * (width - pad) for pad in padding], device=model.device
        )
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._cache: Any = None

    def next_logits(self) -> torch.Tensor:
        """Returns the logits of each row's next token [rows, vocabulary]."""
        out = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def append(self, tokens: Sequence[int]) -> None:
        """Adds a token to each row."""
        # The cache holds everything before, so the next pass reads one token per row.
        self._ids = torch.tensor(tokens, device=self._ids.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1


class RecomputingDecoder:
    """Decoder without a cache: right for every causal model, and slower by the length."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int) -> None:
        """Copies the prompts."""
        self._model = model
        self._rows = [list(prompt) for prompt in prompts]
        self._pad_token_id = pad_token_id

    def next_logits(self) -> torch.Tensor:
        """Returns the logits of each row's next token [rows, vocabulary]."""
        lengths = [len(row) for row in self._rows]
        width = max(lengths)
        kept = width - min(lengths) + 1
        device = self._model.device
        ids = torch.tensor(
            [row + [self._pad_token_id] * (width - len(row)) for row in self._rows], device=device
        )
        logits = self._model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits
        # Counted from the end: few models do not know `logits_to_keep`, and return all.
        columns = torch.tensor(lengths, device=device) - 1 - width
        rows = torch.arange(len(lengths), device=device)
        last: torch.Tensor = logits[rows, columns].float()
        return last

    def append(self, tokens: Sequence[int]) -> None:
        """Adds a token to each row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)

"""What the model forgets while it is trained: the perplexity of a plain text, measured by all workers together. Knows no Ray and no storage."""

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from cprec.encode.tokens import Tokens
from cprec.evaluate import perplexity
from cprec.stream.packing import Cut, MicroBatch, micro_batches
from cprec.stream.worker_batches import GlobalBatch, Share, deal
from cprec.train.engine import Engine

MOST_TOKENS = 1 << 15
"""Tokens of the text that are measured, at most, from its beginning: a forward pass over them is seconds for 7B weights, once per checkpoint."""


@dataclass(frozen=True)
class Monitor:
    """One worker's part of the text. parts: its forward passes, equally many on every worker; tokens: those that count, over all workers."""

    parts: list[MicroBatch]
    tokens: int

    @classmethod
    def of(
        cls,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        cut: Cut,
        rank: int,
        world: int,
    ) -> "Monitor":
        """The windows of a text (`cprec.evaluate.perplexity`), dealt to the workers as the samples of a step are. length: tokens of a window.

        Raises RecipeError for a text of less than two tokens.
        """
        windows = perplexity.windows(tokenizer, text, length, MOST_TOKENS)
        found = [Tokens(np.array(ids, dtype=np.int32), answer=1, dropped=0) for ids in windows]
        dealt = deal([len(ids) for ids in windows], world)
        counted = sum(len(ids) - 1 for ids in windows)
        lengths = tuple(tuple(len(windows[i]) for i in part) for part in dealt)
        batch = GlobalBatch(0, len(found), counted, sum(map(len, windows)), 0, {})
        share = Share(
            batch, rank, lengths, np.zeros(0, dtype=np.uint64), tuple(found[i] for i in dealt[rank])
        )
        # Padded rows go one by one: the logits of every token of several long windows would not fit where those of answers do.
        return cls(
            micro_batches(
                share, cut if cut.packed else replace(cut, size=1), int(tokenizer.eos_token_id)
            ),
            counted,
        )

    def perplexity(self, engine: Engine) -> float:
        """exp of the mean loss per token. Collective: every worker calls it."""
        return perplexity.of(engine.loss(self.parts), self.tokens)

"""What the model forgets while it is trained: the perplexity of a plain text, measured by all workers together. Knows no Ray and no storage."""

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from cprec.encode.tokens import EncodedSample
from cprec.evaluate import perplexity
from cprec.stream.packing import MicroBatch, MicroBatchSpec, build_micro_batches
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens
from cprec.train.engine import Engine

MAX_MEASURED_TOKENS = 1 << 15
"""Tokens of the text that are measured, at most, from its beginning: a forward pass over them is seconds for 7B weights, once per checkpoint."""


@dataclass(frozen=True)
class PerplexityMonitor:
    """One worker's part of the text. parts: its forward passes, equally many on every worker; tokens: those that count, over all workers."""

    batches: list[MicroBatch]
    token_count: int

    @classmethod
    def from_text(
        cls,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        window_tokens: int,
        micro_batch_spec: MicroBatchSpec,
        rank: int,
        world_size: int,
    ) -> "PerplexityMonitor":
        """The windows of a text (`cprec.evaluate.perplexity`), dealt to the workers as the samples of a step are. length: tokens of a window.

        Raises RecipeError for a text of less than two tokens.
        """
        windows = perplexity.split_into_windows(tokenizer, text, window_tokens, MAX_MEASURED_TOKENS)
        found = [
            EncodedSample(np.array(ids, dtype=np.int32), answer_start=1, dropped_titles=0)
            for ids in windows
        ]
        dealt = split_by_tokens([len(ids) for ids in windows], world_size)
        counted = sum(len(ids) - 1 for ids in windows)
        lengths = tuple(tuple(len(windows[i]) for i in part) for part in dealt)
        batch = GlobalBatch(0, len(found), counted, sum(map(len, windows)), 0, {})
        share = WorkerBatch(
            batch, rank, lengths, np.zeros(0, dtype=np.uint64), tuple(found[i] for i in dealt[rank])
        )
        # Padded rows go one by one: the logits of every token of several long windows would not fit where those of answers do.
        return cls(
            build_micro_batches(
                share,
                micro_batch_spec if micro_batch_spec.packed else replace(micro_batch_spec, size=1),
                int(tokenizer.eos_token_id),
            ),
            counted,
        )

    def measure(self, engine: Engine) -> float:
        """exp of the mean loss per token. Collective: every worker calls it."""
        return perplexity.from_loss(engine.total_loss(self.batches), self.token_count)

"""What the model forgets while it trains: the perplexity of a plain text, over all workers."""

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from cprec.evaluation import perplexity
from cprec.stream.packing import MicroBatch, MicroBatchSpec, build_micro_batches
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens
from cprec.train.engine import Engine

MAX_MEASURED_TOKENS = 1 << 15
"""Tokens of the text that are measured, at most, from its beginning.

For 7B weights a forward pass over them takes seconds, once per checkpoint.
"""

MAX_PASS_TOKENS = 4096
"""Tokens of one forward pass over packed windows, at most."""


@dataclass(frozen=True)
class PerplexityMonitor:
    """One worker's part of the text.

    Attributes:
        batches: Its forward passes; every worker has equally many.
        num_tokens: Tokens that count in the loss, over all workers.
    """

    batches: list[MicroBatch]
    num_tokens: int

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
        """Cuts a text into windows, and splits them among the workers like samples of a step.

        Args:
            text: The text.
            tokenizer: Tokenizer of the model.
            window_tokens: Tokens of a window, at most (`cprec.evaluation.perplexity`).
            micro_batch_spec: How the windows of a worker become forward passes.
            rank: Rank of this worker.
            world_size: Number of workers.

        Raises:
            RecipeError: The text has less than two tokens.
        """
        samples = perplexity.split_into_windows(tokenizer, text, window_tokens, MAX_MEASURED_TOKENS)
        lengths = [len(sample.ids) for sample in samples]
        windows_by_rank = split_by_tokens(lengths, world_size)
        num_tokens = sum(len(sample.ids) - sample.answer_start for sample in samples)
        worker_batch = WorkerBatch(
            GlobalBatch(
                start=0,
                stop=len(samples),
                supervised_tokens=num_tokens,
                num_tokens=sum(lengths),
                ids_digest=0,
                samples_by_source={},
            ),
            rank,
            lengths_by_rank=tuple(
                tuple(lengths[i] for i in indices) for indices in windows_by_rank
            ),
            sample_ids=np.zeros(0, dtype=np.uint64),
            samples=tuple(samples[i] for i in windows_by_rank[rank]),
        )
        # Every token of a window has logits, far more than an answer has: windows that fill a
        # micro-batch might not fit into memory.
        largest = MAX_PASS_TOKENS if micro_batch_spec.packed else 1
        micro_batch_spec = replace(micro_batch_spec, size=min(micro_batch_spec.size, largest))
        pad_token = int(tokenizer.eos_token_id)
        return cls(build_micro_batches(worker_batch, micro_batch_spec, pad_token), num_tokens)

    def measure(self, engine: Engine) -> float:
        """Returns the perplexity: exp of the mean loss per token.

        Collective: every worker calls it.
        """
        return perplexity.from_loss(engine.total_loss(self.batches), self.num_tokens)

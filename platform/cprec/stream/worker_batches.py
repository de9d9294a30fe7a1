"""A global batch cut into shares, one per worker. Pure; exact for every number of workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cprec.encode.tokens import EncodedSample
from cprec.stream.token_sharing import SharedRow


@dataclass(frozen=True)
class GlobalBatch:
    """What all workers know of one optimizer step: its positions in the plan and what they hold.

    dropped: titles of histories, the oldest, that were left out because prompts would not have fitted.
    """

    start: int
    stop: int
    supervised_tokens: int
    token_count: int
    ids_digest: int
    samples_by_source: Mapping[str, int]
    dropped_titles: int = 0

    @property
    def sample_count(self) -> int:
        """Samples of the step, over all workers."""
        return self.stop - self.start


@dataclass(frozen=True)
class WorkerBatch:
    """One worker's part of a global batch. ids: [samples of the share] uint64.

    lengths: tokens of each sample of each worker, so that every worker knows how many passes the others make; samples are those of lengths[rank].
    Where samples share tokens (cprec.stream.token_sharing), groups of them stand in the place of samples.
    """

    global_batch: GlobalBatch
    rank: int
    lengths_by_rank: tuple[tuple[int, ...], ...]
    sample_ids: np.ndarray
    samples: tuple[EncodedSample, ...] | tuple[SharedRow, ...]

    @property
    def computed_tokens(self) -> int:
        """Tokens of the global batch that are computed: those of its samples, but of what they share one."""
        return sum(map(sum, self.lengths_by_rank))


def split_by_tokens(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Which samples each worker gets, as indices, longest first: each to the worker with the fewest tokens so far, and sizes differ by one at most.

    Without the bound on sizes the tokens are no better balanced (docs/log.md), and a worker could need one pass more than the others.
    """
    size, larger = divmod(len(lengths), world_size)
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = size + (sum(len(part) > size for part in dealt) < larger)
        rank = min(
            (r for r in range(world_size) if len(dealt[r]) < full), key=lambda r: (tokens[r], r)
        )
        dealt[rank].append(index)
        tokens[rank] += lengths[index]
    return dealt


def imbalance(lengths_by_rank: Sequence[Sequence[int]]) -> float:
    """By how much the worker with the most tokens exceeds the mean, as a share of the mean: 0 when all have the same. lengths: as in Share."""
    tokens = [sum(part) for part in lengths_by_rank]
    return max(tokens) * len(tokens) / sum(tokens) - 1 if sum(tokens) else 0.0

"""Global batches and their division among workers. Pure, and exact for any number of workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cprec.encode.tokens import EncodedSample
from cprec.stream.token_sharing import SharedRow


@dataclass(frozen=True)
class GlobalBatch:
    """What every worker knows about the samples of one optimizer step.

    Attributes:
        start: Position in the plan of its first sample.
        stop: Position in the plan after its last sample.
        supervised_tokens: Number of tokens that count in the loss.
        num_tokens: Number of tokens of all samples. A token that samples share counts for each.
        ids_digest: Digest of the sample ids (cprec.schedule.ledger.ids_digest).
        samples_by_source: Number of samples of each source.
        dropped_titles: Number of history titles left out because samples were too long.
        samples_by_objective: Number of samples of each objective; empty where all have the next
            item, and without windows of text.
    """

    start: int
    stop: int
    supervised_tokens: int
    num_tokens: int
    ids_digest: int
    samples_by_source: Mapping[str, int]
    dropped_titles: int = 0
    samples_by_objective: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Number of samples of the step, over all workers."""
        return self.stop - self.start


@dataclass(frozen=True)
class WorkerBatch:
    """One worker's part of a global batch.

    Where samples share tokens, its units are groups of samples (`SharedRow`) instead of samples.

    Attributes:
        global_batch: The whole batch.
        rank: The worker.
        lengths_by_rank: Tokens of each unit of every worker, by rank. From it each worker knows how
            many passes the others make.
        sample_ids: Ids of this worker's samples, uint64 [samples].
        samples: This worker's units, in the order of `lengths_by_rank[rank]`.
    """

    global_batch: GlobalBatch
    rank: int
    lengths_by_rank: tuple[tuple[int, ...], ...]
    sample_ids: np.ndarray
    samples: tuple[EncodedSample, ...] | tuple[SharedRow, ...]

    @property
    def computed_tokens(self) -> int:
        """Tokens that all workers compute for the global batch: a shared one counts once."""
        return sum(map(sum, self.lengths_by_rank))


def split_by_tokens(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Divides units among workers so that tokens are balanced and sizes differ by at most one.

    Units are assigned longest first, each to the worker with the fewest tokens among those with
    room. The bound on sizes costs no balance (docs/negative-results.md). Without it, a worker could
    need one pass more than the others.

    Args:
        lengths: Tokens of each unit.
        world_size: Number of workers.

    Returns:
        The indices of each worker's units, longest first.
    """
    size, larger_parts = divmod(len(lengths), world_size)
    parts: list[list[int]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # `larger_parts` of the workers take one unit more than the others.
        capacity = size + (sum(len(part) > size for part in parts) < larger_parts)
        rank = min(
            (r for r in range(world_size) if len(parts[r]) < capacity),
            key=lambda r: (tokens[r], r),
        )
        parts[rank].append(index)
        tokens[rank] += lengths[index]
    return parts


def imbalance(lengths_by_rank: Sequence[Sequence[int]]) -> float:
    """Returns the excess of the busiest worker's tokens over the mean, as a fraction of the mean.

    It is 0 when all workers have the same number of tokens, or none has any.

    Args:
        lengths_by_rank: Tokens of each unit of every worker, by rank.
    """
    tokens = [sum(lengths) for lengths in lengths_by_rank]
    return max(tokens) * len(tokens) / sum(tokens) - 1 if sum(tokens) else 0.0

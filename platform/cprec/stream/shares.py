"""A global batch cut into shares, one per worker, and a share into micro-batches. Pure; exact for every number of workers.

Shapes: B samples of a micro-batch, T tokens of its longest sample, N supervised tokens in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cprec.stream.tokens import Tokens


@dataclass(frozen=True)
class GlobalBatch:
    """What all workers know of one optimizer step: its positions in the plan and what they hold."""

    start: int
    stop: int
    supervised: int
    tokens: int
    digest: int
    sources: Mapping[str, int]

    @property
    def samples(self) -> int:
        """Samples of the step, over all workers."""
        return self.stop - self.start


@dataclass(frozen=True)
class Share:
    """One worker's part of a global batch. ids: [samples of the share] uint64. largest: samples of the largest share of the batch."""

    batch: GlobalBatch
    rank: int
    largest: int
    ids: np.ndarray
    samples: tuple[Tokens, ...]


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. ids: [B, T] int64, padded on the right, which a causal model cannot see; supervised: [B, T] bool, the positions whose
    next token counts in the loss; targets: [N] int64, those next tokens, row by row."""

    ids: np.ndarray
    supervised: np.ndarray
    targets: np.ndarray


def deal(lengths: Sequence[int], world: int) -> list[list[int]]:
    """Which samples each worker gets, as indices.

    Longest first, to and fro over the workers, so that tokens are balanced and the numbers of samples differ by one at most.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    dealt: list[list[int]] = [[] for _ in range(world)]
    for turn in range(0, len(lengths), world):
        there = longest_first[turn : turn + world]
        ranks = range(world) if turn // world % 2 == 0 else range(world - 1, -1, -1)
        for rank, index in zip(ranks, there, strict=False):
            dealt[rank].append(index)
    return dealt


def micro_batches(share: Share, size: int, end: int) -> list[MicroBatch]:
    """A share as micro-batches of at most `size` samples of similar length. A worker with fewer samples ends with empty ones, so that all workers
    make the same number of passes (collectives would hang otherwise). end: the token that pads."""
    parts = [share.samples[i : i + size] for i in range(0, len(share.samples), size)]
    return [collate(part, end) for part in parts] + [collate((), end)] * (-(-share.largest // size) - len(parts))


def collate(samples: Sequence[Tokens], end: int) -> MicroBatch:
    """Samples side by side. No samples make one row of one unsupervised token."""
    longest = max((len(s.ids) for s in samples), default=1)
    ids = np.full((max(len(samples), 1), longest), end, dtype=np.int64)
    supervised = np.zeros(ids.shape, dtype=bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = sample.ids
        supervised[row, sample.answer - 1 : len(sample.ids) - 1] = True
    targets = np.concatenate([s.ids[s.answer :] for s in samples]) if samples else np.zeros(0)
    return MicroBatch(ids, supervised, targets.astype(np.int64))

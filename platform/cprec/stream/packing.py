"""A share cut into micro-batches: samples side by side and padded, or packed one after the other into rows of tokens. Pure and deterministic.

Both hold every sample of the share once and are exact: a causal model does not see padding on the right, and in a packed row positions start again at
every sample and attention stays within it (cprec.model.attention). The sample stays the unit: no sample is cut, no row crosses a global batch.
Where samples share tokens, which is not exact, the same holds for groups of them (cprec.stream.token_sharing).

Shapes: B rows of a micro-batch, T tokens of a row, N supervised tokens, S samples of a packed row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cprec.encode.tokens import EncodedSample
from cprec.stream.token_sharing import SharedRow
from cprec.stream.worker_batches import WorkerBatch


@dataclass(frozen=True)
class MicroBatchSpec:
    """How shares are cut. size: tokens of a packed row, or samples of a padded micro-batch.

    fill: packed rows are filled up to `size` with a sample of end tokens, so that every pass has the same shape (torch.compile).
    """

    packed: bool
    size: int
    pad_to_size: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. ids: [B, T] int64; supervised: [B, T] bool, the positions whose next token counts in the loss; targets: [N] int64, those
    next tokens, row by row. tokens: those of samples, without padding.

    Padded on the right, with positions and bounds None; or packed, B = 1: positions [1, T] int64 from 0 in each sample, bounds [S + 1] int32
    between them.

    Where samples share tokens: bounds are those of strips, and seen has the places in the row that each strip sees before its own, int32.
    """

    input_ids: np.ndarray
    supervised_mask: np.ndarray
    targets: np.ndarray
    token_count: int
    position_ids: np.ndarray | None = None
    bounds: np.ndarray | None = None
    visible: tuple[np.ndarray, ...] | None = None


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows of samples, as indices, of at most `budget` tokens each: first fit, longest first. A sample longer than that has a row of its own."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max_tokens)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def split_into_micro_batches(lengths: Sequence[int], spec: MicroBatchSpec) -> list[list[int]]:
    """The samples of each micro-batch of a share, as indices. lengths: of its samples, longest first, so that neighbours pad little."""
    if spec.packed:
        return pack(lengths, spec.size)
    return [
        list(range(start, min(start + spec.size, len(lengths))))
        for start in range(0, len(lengths), spec.size)
    ]


def build_micro_batches(
    worker_batch: WorkerBatch, spec: MicroBatchSpec, pad_token_id: int
) -> list[MicroBatch]:
    """A share as micro-batches. A worker with fewer than others ends with empty ones, so that all make the same number of passes (collectives would
    hang otherwise). end: the token that pads."""
    passes = max(
        len(split_into_micro_batches(lengths, spec)) for lengths in worker_batch.lengths_by_rank
    )
    parts = split_into_micro_batches(worker_batch.lengths_by_rank[worker_batch.rank], spec)
    return [
        collate([worker_batch.samples[i] for i in part], spec, pad_token_id)
        for part in [*parts, *[[]] * (passes - len(parts))]
    ]


def collate(
    samples: Sequence[EncodedSample | SharedRow], spec: MicroBatchSpec, pad_token_id: int
) -> MicroBatch:
    """One micro-batch of samples, or of groups. No samples make one row of unsupervised end tokens."""
    alone, groups = (
        [s for s in samples if isinstance(s, EncodedSample)],
        [s for s in samples if isinstance(s, SharedRow)],
    )
    if groups:
        return _collate_shared(groups)
    return (
        _collate_packed(alone, spec, pad_token_id)
        if spec.packed
        else _collate_padded(alone, pad_token_id)
    )


def _collate_padded(samples: Sequence[EncodedSample], pad_token_id: int) -> MicroBatch:
    longest = max((len(s.ids) for s in samples), default=1)
    ids = np.full((max(len(samples), 1), longest), pad_token_id, dtype=np.int64)
    supervised = np.zeros(ids.shape, dtype=bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = sample.ids
        supervised[row, sample.answer_start - 1 : len(sample.ids) - 1] = True
    return MicroBatch(ids, supervised, _concat_targets(samples), _count_tokens(samples))


def _collate_packed(
    samples: Sequence[EncodedSample], spec: MicroBatchSpec, pad_token_id: int
) -> MicroBatch:
    tokens = _count_tokens(samples)
    padding = max(spec.size - tokens if spec.pad_to_size else 0, 0 if samples else 1)
    lengths = [*(len(s.ids) for s in samples), *([padding] if padding else [])]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.concatenate([*(s.ids for s in samples), np.full(padding, pad_token_id)]).astype(
        np.int64
    )[None]
    positions = (np.arange(ids.size) - np.repeat(bounds[:-1], lengths)).astype(np.int64)[None]
    supervised = np.zeros(ids.shape, dtype=bool)
    for start, sample in zip(bounds.tolist(), samples, strict=False):
        supervised[0, start + sample.answer_start - 1 : start + len(sample.ids) - 1] = True
    return MicroBatch(ids, supervised, _concat_targets(samples), tokens, positions, bounds)


def _collate_shared(groups: Sequence[SharedRow]) -> MicroBatch:
    sizes = [len(group.ids) for group in groups]
    starts = (np.cumsum(sizes) - sizes).tolist()
    ids = np.concatenate([group.ids for group in groups]).astype(np.int64)
    counted = np.concatenate(
        [group.supervised_indices + start for group, start in zip(groups, starts, strict=True)]
    )
    supervised = np.zeros(ids.size, dtype=bool)
    supervised[counted] = True
    bounds = np.concatenate(
        [
            [0],
            *(group.strip_bounds[1:] + start for group, start in zip(groups, starts, strict=True)),
        ]
    ).astype(np.int32)
    seen = tuple(
        part + start
        for group, start in zip(groups, starts, strict=True)
        for part in np.split(group.visible, group.visible_bounds[1:-1].tolist())
    )
    positions = np.concatenate([group.position_ids for group in groups]).astype(np.int64)
    return MicroBatch(
        ids[None], supervised[None], ids[counted + 1], ids.size, positions[None], bounds, seen
    )


def _count_tokens(samples: Sequence[EncodedSample]) -> int:
    return sum(len(s.ids) for s in samples)


def _concat_targets(samples: Sequence[EncodedSample]) -> np.ndarray:
    return np.concatenate(
        [np.zeros(0, dtype=np.int64), *(s.ids[s.answer_start :] for s in samples)]
    ).astype(np.int64)

"""Division of a worker batch into micro-batches, packed or padded. Pure and deterministic.

*Packed*: samples stand one after the other in a row of tokens. *Padded*: samples are the rows,
filled on the right. Either way every sample is in exactly one micro-batch, no sample is cut, and no
row crosses a global batch.

Both are exact. A causal model does not see padding on the right. In a packed row, positions restart
at every sample and attention stays within it (cprec.model.attention). Where samples share tokens,
which is not exact, groups of samples are packed instead (cprec.stream.token_sharing).

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
    """How worker batches are divided into micro-batches.

    Attributes:
        packed: Whether samples are packed; else they are padded.
        size: Tokens of a packed row, or samples of a padded micro-batch.
        pad_to_size: Whether packed rows are filled up to `size` with end tokens, so that every pass
            has the same shape (torch.compile).
    """

    packed: bool
    size: int
    pad_to_size: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass.

    The last three attributes are None for padded samples. A packed micro-batch has one row, B = 1.

    Attributes:
        input_ids: Token ids, int64 [B, T].
        supervised_mask: Positions whose next token counts in the loss, bool [B, T].
        targets: Those next tokens, row by row, int64 [N].
        token_count: Number of tokens of the samples, without padding.
        position_ids: Positions, from 0 in each sample, int64 [1, T].
        bounds: Bounds between samples, int32 [S + 1]; between strips where samples share tokens.
        visible: Where samples share tokens, for each strip the indices in the row of the earlier
            tokens that it sees, int32.
    """

    input_ids: np.ndarray
    supervised_mask: np.ndarray
    targets: np.ndarray
    token_count: int
    position_ids: np.ndarray | None = None
    bounds: np.ndarray | None = None
    visible: tuple[np.ndarray, ...] | None = None


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Packs samples into rows, first fit, longest first.

    Args:
        lengths: Tokens of each sample.
        max_tokens: Tokens of a row. A sample that is longer has a row of its own.

    Returns:
        The indices of the samples of each row.
    """
    rows: list[list[int]] = []
    free_tokens: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, free in enumerate(free_tokens) if free >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            free_tokens.append(max_tokens)
        rows[row].append(index)
        free_tokens[row] -= lengths[index]
    return rows


def split_into_micro_batches(lengths: Sequence[int], spec: MicroBatchSpec) -> list[list[int]]:
    """Divides a worker's samples among micro-batches.

    Args:
        lengths: Tokens of each sample, longest first, so that neighbours need little padding.
        spec: How to divide them.

    Returns:
        The indices of the samples of each micro-batch.
    """
    if spec.packed:
        return pack(lengths, spec.size)
    return [
        list(range(start, min(start + spec.size, len(lengths))))
        for start in range(0, len(lengths), spec.size)
    ]


def build_micro_batches(
    worker_batch: WorkerBatch, spec: MicroBatchSpec, pad_token_id: int
) -> list[MicroBatch]:
    """Builds the micro-batches of a worker, the same number for every worker of a global batch.

    A worker with fewer than others gets empty ones at the end: collectives hang unless all workers
    make the same number of passes.

    Args:
        worker_batch: The worker's part of a global batch.
        spec: How to divide it.
        pad_token_id: Token of the padding, the end token.
    """
    pass_count = max(
        len(split_into_micro_batches(lengths, spec)) for lengths in worker_batch.lengths_by_rank
    )
    parts = split_into_micro_batches(worker_batch.lengths_by_rank[worker_batch.rank], spec)
    return [
        collate([worker_batch.samples[i] for i in part], spec, pad_token_id)
        for part in [*parts, *[[]] * (pass_count - len(parts))]
    ]


def collate(
    samples: Sequence[EncodedSample | SharedRow], spec: MicroBatchSpec, pad_token_id: int
) -> MicroBatch:
    """Builds one micro-batch.

    Args:
        samples: Its samples, or groups of samples that share tokens, which are always packed. If
            there are none, the micro-batch is a row of padding with no supervised token.
        spec: Whether to pack or to pad.
        pad_token_id: Token of the padding, the end token.
    """
    shared_rows = [s for s in samples if isinstance(s, SharedRow)]
    if shared_rows:
        return _collate_shared(shared_rows)
    encoded_samples = [s for s in samples if isinstance(s, EncodedSample)]
    if spec.packed:
        return _collate_packed(encoded_samples, spec, pad_token_id)
    return _collate_padded(encoded_samples, pad_token_id)


def _collate_padded(samples: Sequence[EncodedSample], pad_token_id: int) -> MicroBatch:
    """Builds a micro-batch whose rows are samples."""
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
    """Builds a micro-batch of one row that holds samples one after the other."""
    token_count = _count_tokens(samples)
    padding = max(spec.size - token_count if spec.pad_to_size else 0, 0 if samples else 1)
    # Padding counts as one more sample, so that no other sample sees it.
    lengths = [*(len(s.ids) for s in samples), *([padding] if padding else [])]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.concatenate([*(s.ids for s in samples), np.full(padding, pad_token_id)]).astype(
        np.int64
    )[None]
    positions = (np.arange(ids.size) - np.repeat(bounds[:-1], lengths)).astype(np.int64)[None]
    supervised = np.zeros(ids.shape, dtype=bool)
    for start, sample in zip(bounds.tolist(), samples, strict=False):
        supervised[0, start + sample.answer_start - 1 : start + len(sample.ids) - 1] = True
    return MicroBatch(ids, supervised, _concat_targets(samples), token_count, positions, bounds)


def _collate_shared(groups: Sequence[SharedRow]) -> MicroBatch:
    """Builds a micro-batch of one row that holds groups of samples one after the other."""
    sizes = [len(group.ids) for group in groups]
    starts = (np.cumsum(sizes) - sizes).tolist()
    ids = np.concatenate([group.ids for group in groups]).astype(np.int64)
    positions = np.concatenate([group.position_ids for group in groups]).astype(np.int64)
    # Indices within a group become indices in the row.
    supervised_indices = np.concatenate(
        [group.supervised_indices + start for group, start in zip(groups, starts, strict=True)]
    )
    supervised = np.zeros(ids.size, dtype=bool)
    supervised[supervised_indices] = True
    bounds = np.concatenate(
        [
            [0],
            *(group.strip_bounds[1:] + start for group, start in zip(groups, starts, strict=True)),
        ]
    ).astype(np.int32)
    visible = tuple(
        indices + start
        for group, start in zip(groups, starts, strict=True)
        for indices in np.split(group.visible, group.visible_bounds[1:-1].tolist())
    )
    return MicroBatch(
        ids[None],
        supervised[None],
        ids[supervised_indices + 1],
        ids.size,
        positions[None],
        bounds,
        visible,
    )


def _count_tokens(samples: Sequence[EncodedSample]) -> int:
    return sum(len(s.ids) for s in samples)


def _concat_targets(samples: Sequence[EncodedSample]) -> np.ndarray:
    """Returns the supervised tokens of samples, one sample after the other, int64 [N]."""
    return np.concatenate(
        [np.zeros(0, dtype=np.int64), *(s.ids[s.answer_start :] for s in samples)]
    ).astype(np.int64)

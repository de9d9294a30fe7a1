"""Division of a worker batch into micro-batches, packed or padded. Pure and deterministic.

*Packed*: samples stand one after the other in a row of tokens. *Padded*: samples are the rows,
filled on the right. Either way every sample is in exactly one micro-batch, no sample is cut, and no
row crosses a global batch.

Both are exact. A causal model does not see padding on the right. In a packed row, positions restart
at every sample and attention stays within it (cprec.model.kernels.attention). Where samples share
tokens, which is not exact, groups of samples are packed instead (cprec.stream.token_sharing).

Shapes: B rows of a micro-batch, T tokens of a row, N supervised tokens, S samples of a packed row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cprec.encode.tokens import EncodedSample
from cprec.stream.rows import Row, divide_into_rows
from cprec.stream.token_sharing import SharedRow
from cprec.stream.worker_batches import WorkerBatch


@dataclass(frozen=True)
class MicroBatchSpec:
    """How worker batches are divided into micro-batches.

    Attributes:
        packed: Whether samples are packed; else they are padded.
        size: Tokens of a packed row, at most, or samples of a padded micro-batch.
        filled: Whether packed rows are nearly equal, and filled up with end tokens to few different
            lengths (on a GPU, and where layers are compiled).
    """

    packed: bool
    size: int
    filled: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass.

    The last three attributes are None for padded samples. A packed micro-batch has one row, B = 1.

    Attributes:
        input_ids: Token ids, int64 [B, T].
        supervised_mask: Positions whose next token counts in the loss, bool [B, T].
        targets: Those next tokens, row by row, int64 [N].
        num_tokens: Number of tokens of the samples, without filling.
        position_ids: Positions, from 0 in each sample, int64 [1, T].
        bounds: Bounds between samples, int32 [S + 1]; between strips where samples share tokens.
        visible: Where samples share tokens, for each strip the indices in the row of the earlier
            tokens that it sees, int32.
    """

    input_ids: np.ndarray
    supervised_mask: np.ndarray
    targets: np.ndarray
    num_tokens: int
    position_ids: np.ndarray | None = None
    bounds: np.ndarray | None = None
    visible: tuple[np.ndarray, ...] | None = None

    @property
    def computed_tokens(self) -> int:
        """Number of tokens that the pass computes, with filling: B x T."""
        return self.input_ids.size


@lru_cache(maxsize=2)
def divide(
    lengths_by_rank: tuple[tuple[int, ...], ...], spec: MicroBatchSpec
) -> tuple[tuple[Row, ...], ...]:
    """Divides a global batch into forward passes, the same number for every worker.

    Collectives hang unless all workers make the same number of passes. A worker whose samples fit
    into fewer divides them among as many as the others make.

    Args:
        lengths_by_rank: Tokens of each unit of every worker, by rank.
        spec: How to divide them.

    Returns:
        The passes of each worker, by rank. A pass without samples computes filling only.
    """
    if not spec.packed:
        passes = -(-max(map(len, lengths_by_rank)) // spec.size)
        return tuple(_divide_padded(lengths, spec.size, passes) for lengths in lengths_by_rank)
    rows_by_rank = [divide_into_rows(ls, spec.size, spec.filled) for ls in lengths_by_rank]
    passes = max(map(len, rows_by_rank))
    return tuple(
        tuple(
            rows
            if len(rows) == passes
            else divide_into_rows(lengths, spec.size, spec.filled, passes)
        )
        for lengths, rows in zip(lengths_by_rank, rows_by_rank, strict=True)
    )


def _divide_padded(lengths: Sequence[int], size: int, passes: int) -> tuple[Row, ...]:
    """Divides samples, longest first, so that neighbours need little padding."""
    parts = [range(len(lengths))[start : start + size] for start in range(0, passes * size, size)]
    return tuple(
        Row(tuple(part), max(len(part), 1) * max((lengths[i] for i in part), default=1))
        for part in parts
    )


def filled_tokens(lengths_by_rank: tuple[tuple[int, ...], ...], spec: MicroBatchSpec) -> int:
    """Returns how many tokens a global batch computes beside those of its samples.

    Args:
        lengths_by_rank: Tokens of each unit of every worker, by rank.
        spec: How they are divided into passes.
    """
    computed = sum(row.length for rows in divide(lengths_by_rank, spec) for row in rows)
    return computed - sum(map(sum, lengths_by_rank))


def build_micro_batches(
    worker_batch: WorkerBatch, spec: MicroBatchSpec, pad_token_id: int
) -> list[MicroBatch]:
    """Builds the micro-batches of a worker, the same number for every worker of a global batch.

    Args:
        worker_batch: The worker's part of a global batch.
        spec: How to divide it.
        pad_token_id: Token of the filling, the end token.
    """
    rows = divide(worker_batch.lengths_by_rank, spec)[worker_batch.rank]
    return [
        collate([worker_batch.samples[i] for i in row.indices], spec, pad_token_id, row.length)
        for row in rows
    ]


def collate(
    samples: Sequence[EncodedSample | SharedRow],
    spec: MicroBatchSpec,
    pad_token_id: int,
    length: int = 1,
) -> MicroBatch:
    """Builds one micro-batch.

    Args:
        samples: Its samples, or groups of samples that share tokens, which are always packed. If
            there are none, the micro-batch is a row of filling with no supervised token.
        spec: Whether to pack or to pad.
        pad_token_id: Token of the filling, the end token.
        length: Tokens of a packed row of samples, at least; the rest is filled.
    """
    shared_rows = [s for s in samples if isinstance(s, SharedRow)]
    if shared_rows:
        return _collate_shared(shared_rows)
    encoded_samples = [s for s in samples if isinstance(s, EncodedSample)]
    if spec.packed:
        return _collate_packed(encoded_samples, pad_token_id, length)
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


def _collate_packed(samples: Sequence[EncodedSample], pad_token_id: int, length: int) -> MicroBatch:
    """Builds a micro-batch of one row that holds samples one after the other."""
    num_tokens = _count_tokens(samples)
    filling = max(length - num_tokens, 0)
    # The filling counts as one more sample, so that no other sample sees it.
    lengths = [*(len(s.ids) for s in samples), *([filling] if filling else [])]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.concatenate([*(s.ids for s in samples), np.full(filling, pad_token_id)]).astype(
        np.int64
    )[None]
    positions = (np.arange(ids.size) - np.repeat(bounds[:-1], lengths)).astype(np.int64)[None]
    supervised = np.zeros(ids.shape, dtype=bool)
    for start, sample in zip(bounds.tolist(), samples, strict=False):
        supervised[0, start + sample.answer_start - 1 : start + len(sample.ids) - 1] = True
    return MicroBatch(ids, supervised, _concat_targets(samples), num_tokens, positions, bounds)


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

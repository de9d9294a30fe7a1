"""Checks on the actual model that packed and padded samples have the logits that they have alone.

The passes are those of training: `compute` is the engine's own function, with the model as it is
wrapped there. Every worker makes the same passes, so that it works under ZeRO 3 too.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cluster.errors import RecipeError
from cprec.config.sections.pretraining import TrainSettings
from cprec.encode.tokens import EncodedSample
from cprec.model import self_check
from cprec.model.kernels import attention
from cprec.model.kernels.last_layer import trim_last_layer
from cprec.stream.packing import MicroBatch, MicroBatchSpec, collate
from cprec.stream.token_sharing import SharedRow

ComputeLogits = Callable[[MicroBatch], torch.Tensor]
"""Returns the logits [N, vocabulary] of a micro-batch's supervised tokens."""

PACKED = MicroBatchSpec(packed=True, size=1)
PADDED = MicroBatchSpec(packed=False, size=1)


@dataclass(frozen=True)
class Probe:
    """A random sample, what may stand before it, and what it gives alone.

    Attributes:
        tokens: Token ids of the sample.
        first: Token ids that stand before it, no fewer.
        second: Other token ids in their place, as many.
        expected: Logits of the sample alone, of all tokens but the last [tokens - 1, vocabulary].
        effect: Relative difference that it makes to see `second` instead of `first`.
        limits: What rounding may change.
    """

    tokens: list[int]
    first: list[int]
    second: list[int]
    expected: torch.Tensor
    effect: float
    limits: self_check.Rounding

    def difference(self, logits: torch.Tensor) -> str | None:
        """Returns by how much logits of the sample differ from the expected ones."""
        return self_check.find_inequality(logits, self.expected, self.effect, self.limits)


def choose_packing(
    compute: ComputeLogits,
    model: torch.nn.Module,
    settings: TrainSettings,
    max_tokens: int,
    any_worker: Callable[[bool], bool] = bool,
) -> tuple[bool, str | None]:
    """Tries padded and packed rows, and enables packing where it is asked for and exact.

    Args:
        compute: Computes logits as training does, in evaluation mode and without gradients.
        model: The model.
        settings: The recipe's section `train`.
        max_tokens: Tokens of the longest sample.
        any_worker: Returns whether a flag is set on any worker.

    Returns:
        Whether samples are packed; and why they are padded although they should be packed, if so.

    Raises:
        RecipeError: The model is not causal, so no way is right; or samples are to share tokens,
            which they can only do in packed rows.
    """
    probe, fault = probe_padding(compute, model, max_tokens)
    if any_worker(fault is not None):
        raise RecipeError(
            "model.base: later tokens change what this model predicts before them "
            f"({fault or 'on another worker'}); it is not a causal language model, give one that is"
        )
    if not settings.pack:
        return False, None
    shared = bool(settings.inexact_keys)
    previous = attention.enable_packing(model)
    trim = trim_last_layer(model)
    fault = find_packing_fault(compute, probe, shared)
    if trim is not None and any_worker(fault is not None):
        trim.undo()
        fault = find_packing_fault(compute, probe, shared)
    if not any_worker(fault is not None):
        return True, None
    attention.set_attention(model, previous)
    fault = fault or "on another worker"
    if settings.inexact_keys:
        raise RecipeError(
            f"{settings.inexact_keys}: samples share tokens only in packed rows, which are not "
            f"exact for this model.base ({fault}); set train.targets_per_pass 1 and "
            "train.shared_candidates 0"
        )
    return False, fault


def probe_padding(compute: ComputeLogits, model: Any, max_tokens: int) -> tuple[Probe, str | None]:
    """Tries padded samples, which are what training falls back to.

    Args:
        compute: Computes logits as training does.
        model: The model, for its configuration and data type.
        max_tokens: Tokens of the longest sample.

    Returns:
        The probe, for `find_packing_fault`, and what is wrong with padded samples, if anything is:
        then later tokens change what is predicted before them, and no pass is right.
    """
    # The rows below hold two samples, which together are no longer than the longest.
    length = max(min(self_check.probe_length(model, max_tokens), max_tokens // 2), 2)
    tokens, first, second = self_check.random_tokens(
        model, length, *[min(length, self_check.PROBE_TOKENS)] * 2
    )
    rows = [tokens, tokens + first, first + tokens, second + tokens]
    starts = [1, 1, len(first) + 1, len(second) + 1]
    expected = compute(collate([_sample(tokens, 1)], PADDED, first[0]))
    logits = compute(
        collate([_sample(*row) for row in zip(rows, starts, strict=True)], PADDED, first[0])
    )
    size = len(tokens) - 1
    padded, causal, behind_first, behind_second = (
        part[:size] for part in torch.split(logits, [size, size + len(first), size, size])
    )
    limits = self_check.rounding(model)
    effect = self_check.relative_difference(behind_second, behind_first)
    probe = Probe(tokens, first, second, expected, effect, limits)
    return probe, probe.difference(padded) or probe.difference(causal)


def find_packing_fault(compute: ComputeLogits, probe: Probe, shared: bool) -> str | None:
    """Returns why packed rows are not exact for a model that is enabled for them; None if they are.

    Args:
        compute: Computes logits as training does.
        probe: The probe, made before packing was enabled.
        shared: Whether samples share tokens, so that rows consist of strips.
    """
    size = len(probe.tokens) - 1

    def compare() -> str | None:
        unpacked = compute(collate([_sample(probe.tokens, 1)], PADDED, probe.first[0]))
        if fault := probe.difference(unpacked):
            return fault
        behind_first, behind_second = (
            compute(
                collate(
                    [_sample(before, len(before) - 1), _sample(probe.tokens, 1)], PACKED, before[0]
                )
            )[-size:]
            for before in (probe.first, probe.second)
        )
        return self_check.find_difference(
            behind_first, behind_second, probe.expected, probe.effect, probe.limits
        )

    return self_check.run_check(compare) or (
        self_check.run_check(lambda: _find_strip_fault(compute, probe)) if shared else None
    )


def _find_strip_fault(compute: ComputeLogits, probe: Probe) -> str | None:
    """Returns what is wrong with a row of strips, in which two samples share their beginning."""
    head = probe.tokens[: len(probe.tokens) // 2]
    tail = probe.tokens[len(head) :]
    behind_first, behind_second = (
        compute(collate([_strips(head, other, tail)], PACKED, head[0]))[-(len(tail) - 1) :]
        for other in (probe.first, probe.second)
    )
    return self_check.find_difference(
        behind_first,
        behind_second,
        probe.expected[-(len(tail) - 1) :],
        probe.effect,
        probe.limits,
    )


def _strips(head: Sequence[int], *tails: Sequence[int]) -> SharedRow:
    """Returns a row whose strips are a beginning, and several ends that see it and themselves."""
    sizes = [len(head), *map(len, tails)]
    bounds = np.cumsum([0, *sizes])
    positions = [np.arange(len(tail)) + len(head) for tail in tails]
    supervised = [np.arange(start, stop - 1) for start, stop in itertools.pairwise(bounds[1:])]
    arrays = (
        np.arange(len(tails)),
        np.concatenate([head, *tails]),
        np.concatenate([np.arange(len(head)), *positions]),
        np.concatenate(supervised),
        bounds,
        np.tile(np.arange(len(head)), len(tails)),
        np.cumsum([0, 0, *[len(head)] * len(tails)]),
    )
    return SharedRow(*(array.astype(np.int32) for array in arrays))


def _sample(tokens: Sequence[int], answer_start: int) -> EncodedSample:
    return EncodedSample(np.array(tokens, dtype=np.int32), answer_start, dropped_titles=0)

"""Rows of prompts and their branches: continuations that see their prompt, but not each other.

A row is `[prompt 1 | prompt 2 | .. | branches of 1 | branches of 2 | ..]`. So prompts are one slice
of it and branches another, and each prompt and each branch is a plain causal sequence. Besides its
own tokens a branch sees all of its prompt.

Shapes: T tokens of a row, P of them in prompts, n prompts, K branches, H heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cprec.model.kernels import flash_attention
from cprec.model.layouts.strips import StripLayout, window_mask

TILE = 128
"""Lengths that a kernel is told are rounded up to this, so that compiled code sees few of them."""


@dataclass(frozen=True)
class BranchLayout:
    """Which tokens of a row belong to which prompt and branch.

    Attributes:
        prompt_sizes: Tokens of each prompt [n].
        branch_counts: Branches of each prompt [n].
        branch_sizes: Tokens of each branch, prompt by prompt [K]; 0 for a branch without any.
        prompt_bounds: First token of each prompt, and the end of the last [n + 1], int32, on the
            model's device.
        branch_bounds: The same of the branches, counted from the first token of a branch [K + 1].
        group_bounds: The same of all branches of a prompt, as one sequence [n + 1].
        prompt_tokens: P.
        longest_prompt: Tokens of the longest prompt, rounded up.
        longest_branch: Tokens of the longest branch, rounded up.
        longest_group: Tokens of all branches of a prompt, at most, rounded up.
        longest: Tokens of the longest prompt with a branch.
    """

    prompt_sizes: NDArray[np.int64]
    branch_counts: NDArray[np.int64]
    branch_sizes: NDArray[np.int64]
    prompt_bounds: torch.Tensor
    branch_bounds: torch.Tensor
    group_bounds: torch.Tensor
    prompt_tokens: int
    longest_prompt: int
    longest_branch: int
    longest_group: int
    longest: int
    _strips: dict[int | None, StripLayout] = field(default_factory=dict, repr=False, compare=False)

    def strips(self, window: int | None) -> StripLayout:
        """Returns the row as strips: each prompt is one, and all branches of a prompt are one.

        Args:
            window: Tokens that a token sees at most, itself included; None for all.
        """
        if window not in self._strips:
            self._strips[window] = self._build_strips(window)
        return self._strips[window]

    def _build_strips(self, window: int | None) -> StripLayout:
        groups = np.split(self.branch_sizes, np.cumsum(self.branch_counts)[:-1])
        prompt_starts = np.cumsum(self.prompt_sizes) - self.prompt_sizes
        group_sizes = np.array([sizes.sum() for sizes in groups])
        group_starts = self.prompt_tokens + np.cumsum(group_sizes) - group_sizes
        device = self.prompt_bounds.device
        keys: list[NDArray[np.int64]] = []
        masks: list[torch.Tensor | None] = []
        for start, size in zip(prompt_starts, self.prompt_sizes, strict=True):
            keys.append(np.arange(start, start + size))
            masks.append(window_mask(int(size), window, device))
        for start, size, group_start, sizes in zip(
            prompt_starts, self.prompt_sizes, group_starts, groups, strict=True
        ):
            if not sizes.sum():
                continue
            own = np.arange(group_start, group_start + sizes.sum())
            keys.append(np.concatenate([np.arange(start, start + size), own]))
            masks.append(torch.from_numpy(_branch_mask(int(size), sizes, window)).to(device))
        return StripLayout(
            key_indices=torch.from_numpy(np.concatenate(keys)).to(device),
            query_counts=[*self.prompt_sizes.tolist(), *group_sizes[group_sizes > 0].tolist()],
            key_counts=[len(part) for part in keys],
            masks=masks,
        )


def branch_arguments(
    prompt_sizes: NDArray[np.int64],
    branch_counts: NDArray[np.int64],
    branch_sizes: NDArray[np.int64],
    device: torch.device,
) -> dict[str, Any]:
    """Returns the forward pass's extra arguments for a row of prompts and branches.

    They are passed, together with token ids and positions, to a model whose attention is
    `cprec.model.kernels.attention.MASKLESS_NAME`.

    Args:
        prompt_sizes: Tokens of each prompt [n], at least 1.
        branch_counts: Branches of each prompt [n].
        branch_sizes: Tokens of each branch, prompt by prompt [K].
        device: Device of the model.
    """
    numbers = np.repeat(np.arange(len(prompt_sizes)), branch_counts)
    group_sizes = np.bincount(numbers, branch_sizes, len(prompt_sizes)).astype(np.int64)
    bounds = [np.cumsum([0, *sizes]) for sizes in (prompt_sizes, branch_sizes, group_sizes)]
    prompt_bounds, branch_bounds, group_bounds = copy_to_device(bounds, device, torch.int32)
    positions = prompt_sizes[numbers] + branch_sizes
    layout = BranchLayout(
        prompt_sizes,
        branch_counts,
        branch_sizes,
        prompt_bounds,
        branch_bounds,
        group_bounds,
        prompt_tokens=int(bounds[0][-1]),
        longest_prompt=_round_up(prompt_sizes),
        longest_branch=_round_up(branch_sizes),
        longest_group=_round_up(group_sizes),
        longest=int(max(positions.max(initial=0), prompt_sizes.max())),
    )
    return {"packed_branches": layout}


def copy_to_device(
    arrays: Sequence[NDArray[np.int64]], device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Copies arrays to a device in one transfer, for which a GPU is not waited for.

    Args:
        arrays: Arrays of one axis.
        device: The device.
        dtype: Data type of the tensors.
    """
    flat = torch.from_numpy(np.concatenate(arrays)).to(dtype)
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    return list(torch.split(flat.to(device), [len(array) for array in arrays]))


def attend_branches(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: BranchLayout,
    scaling: float | None,
) -> torch.Tensor:
    """Attends in three calls of variable-length flash attention, without a mask.

    Prompts attend to themselves; branches to themselves and to their prompts. The two results of a
    branch are averaged by the weight that softmax gives to either part of the keys, which the
    log-sum-exp of the scores tells.

    Args:
        query: Queries [1, H, T, D].
        key: Keys [1, key heads, T, D].
        value: Values, as the keys.
        layout: The row.
        scaling: Factor on the dot products; None for 1 / sqrt(D).

    Returns:
        The attended values [1, T, H, D], contiguous.
    """
    prompts = slice(layout.prompt_tokens)
    branches = slice(layout.prompt_tokens, None)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    prompt_bounds, longest_prompt = layout.prompt_bounds, layout.longest_prompt
    of_prompts, _ = flash_attention.attend_sequences(
        q[prompts],
        k[prompts],
        v[prompts],
        prompt_bounds,
        prompt_bounds,
        longest_prompt,
        longest_prompt,
        scaling,
    )
    if layout.prompt_tokens == len(q):
        return of_prompts.unsqueeze(0).contiguous()
    bounds, longest = layout.branch_bounds, layout.longest_branch
    own, own_sum = flash_attention.attend_sequences(
        q[branches], k[branches], v[branches], bounds, bounds, longest, longest, scaling
    )
    shared, shared_sum = flash_attention.attend_sequences(
        q[branches],
        k[prompts],
        v[prompts],
        layout.group_bounds,
        prompt_bounds,
        layout.longest_group,
        longest_prompt,
        scaling,
        causal=False,
    )
    own_weight = torch.sigmoid(own_sum - shared_sum).transpose(0, 1).unsqueeze(-1)
    of_branches = torch.lerp(shared.float(), own.float(), own_weight).to(query.dtype)
    return torch.cat([of_prompts, of_branches]).unsqueeze(0).contiguous()


def _branch_mask(
    prompt_size: int, branch_sizes: NDArray[np.int64], window: int | None
) -> NDArray[np.bool_]:
    """Returns what the tokens of a prompt's branches see: the prompt, and their own branch.

    Of its own branch a token sees itself and what is before it. Each branch has the positions right
    after the prompt.

    Args:
        prompt_size: Tokens of the prompt.
        branch_sizes: Tokens of each of its branches.
        window: Tokens that a token sees at most, itself and the nearest before it; None for all.

    Returns:
        The mask [tokens of the branches, tokens of the prompt and the branches]: True where the
        token of the row sees that of the column.
    """
    branches = np.repeat(np.arange(len(branch_sizes)), branch_sizes)
    starts = np.repeat(np.cumsum(branch_sizes) - branch_sizes, branch_sizes)
    positions = prompt_size + np.arange(len(branches)) - starts
    own = branches[:, None] == branches[None, :]
    of_prompt = np.ones((len(branches), prompt_size), dtype=bool)
    visible = np.concatenate([of_prompt, np.tril(own)], axis=1)
    if window is not None:
        key_positions = np.concatenate([np.arange(prompt_size), positions])
        visible &= positions[:, None] - key_positions[None, :] < window
    return visible


def _round_up(sizes: NDArray[np.int64]) -> int:
    """Returns the largest size, rounded up to a whole tile, at least one."""
    return max(-(-int(sizes.max(initial=0)) // TILE), 1) * TILE

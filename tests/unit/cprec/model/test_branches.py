"""Prompts with branches: what each token sees, by flash calls and by strips, without a mask."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cprec.model.kernels import flash_attention
from cprec.model.layouts import branches
from cprec.model.layouts.branches import BranchLayout

HEADS, KEY_HEADS, HEAD_SIZE = 6, 2, 8

rows = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 5), max_size=4)), min_size=1, max_size=4
)
"""Tokens of each prompt, and of each of its branches."""


def build(row: list[tuple[int, list[int]]]) -> BranchLayout:
    arguments = branches.branch_arguments(
        np.array([prompt for prompt, _ in row]),
        np.array([len(sizes) for _, sizes in row]),
        np.array([size for _, sizes in row for size in sizes], dtype=np.int64),
        torch.device("cpu"),
    )
    layout: BranchLayout = arguments["packed_branches"]
    return layout


def visible(row: list[tuple[int, list[int]]], window: int | None) -> torch.Tensor:
    """Returns what each token sees [T, T], token by token as the text has it."""
    tokens = [(n, 0, position) for n, (prompt, _) in enumerate(row) for position in range(prompt)]
    for n, (prompt, sizes) in enumerate(row):
        for branch, size in enumerate(sizes, 1):
            tokens += [(n, branch, prompt + position) for position in range(size)]
    return torch.tensor(
        [
            [n == m and b in (a, 0) and 0 <= i - j < (window or len(tokens)) for m, b, j in tokens]
            for n, a, i in tokens
        ]
    )


def attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float | None = None,
    causal: bool = True,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what the flash kernel computes, and checks what it is promised."""
    assert window is None
    assert (query_bounds.dtype, key_bounds.dtype) == (torch.int32, torch.int32)
    assert query_bounds[[0, -1]].tolist() == [0, len(query)]
    assert key_bounds[[0, -1]].tolist() == [0, len(key)]
    assert query_bounds.diff().max() <= longest_query
    assert key_bounds.diff().max() <= longest_key
    groups = query.shape[1] // key.shape[1]
    out, sums = torch.full_like(query, torch.nan), torch.full(query.shape[:2], torch.nan)
    for i in range(len(query_bounds) - 1):
        mine, keys = (slice(*bounds[i : i + 2].tolist()) for bounds in (query_bounds, key_bounds))
        k, v = (x[keys].repeat_interleave(groups, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->qhk", query[mine], k) * (scaling or query.shape[-1] ** -0.5)
        if causal:
            ones = torch.ones(scores.shape[0], scores.shape[2], dtype=torch.bool)
            scores = scores.masked_fill(~ones.tril()[:, None], float("-inf"))
        out[mine] = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v)
        sums[mine] = scores.logsumexp(-1)
    return out, sums.transpose(0, 1)


@given(rows, st.sampled_from([None, 1, 3, 30]), st.sampled_from([None, 0.7]))
@settings(deadline=None)
def test_strips_and_flash_calls_give_what_a_dense_mask_gives(
    row: list[tuple[int, list[int]]], window: int | None, scaling: float | None
) -> None:
    layout = build(row)
    tokens = sum(prompt + sum(sizes) for prompt, sizes in row)
    generator = torch.Generator().manual_seed(tokens)
    query = torch.randn(1, HEADS, tokens, HEAD_SIZE, generator=generator)
    key, value = torch.randn(2, 1, KEY_HEADS, tokens, HEAD_SIZE, generator=generator)
    mask = visible(row, window)
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    strips = layout.strips(window)
    start = end = 0
    for queries, keys, own in zip(
        strips.query_counts, strips.key_counts, strips.masks, strict=True
    ):
        indices = strips.key_indices[end : end + keys]
        if own is None:
            assert queries == keys
            own = torch.ones(queries, keys, dtype=torch.bool).tril()
        part = torch.zeros(queries, tokens, dtype=torch.bool)
        part[:, indices] = own
        assert torch.equal(part, mask[start : start + queries])
        start, end = start + queries, end + keys
    assert start == tokens
    if window is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flash_attention, "attend_sequences", attend_plainly)
            actual = branches.attend_branches(query, key, value, layout, scaling)
        assert actual.is_contiguous()
        assert (actual.transpose(1, 2) - expected).abs().max() <= 1e-5


def test_a_layer_takes_three_calls_and_nothing_is_as_large_as_a_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def count(*arguments: Any, **others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(arguments)
        return attend_plainly(*arguments, **others)

    monkeypatch.setattr(flash_attention, "attend_sequences", count)
    layout = build([(30, [5, 4]), (20, [3]), (10, [])])
    query = torch.randn(1, HEADS, 72, HEAD_SIZE)
    key = torch.randn(1, KEY_HEADS, 72, HEAD_SIZE)
    branches.attend_branches(query, key, key, layout, None)
    assert [(len(q), len(k)) for q, k, *_ in calls] == [(60, 60), (12, 12), (12, 60)]

"""Two kernels for NVIDIA GPUs, in Triton, where libraries take about twice the time.

- `add_low_rank` adds a product of low rank to a large matrix in place. cuBLAS reaches 60 % of the
  memory's speed at it.
- `quantise_rows` writes several matrices, side by side, as one in FP8. It reads each once, though
  the scale of a row depends on the whole row; code that torch.compile makes reads it twice.

Import this module only where there is an NVIDIA GPU: Triton comes with PyTorch's builds for CUDA.

Shapes: n rows, r the rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

ROWS, COLUMNS = 64, 128
"""Tile of `add_low_rank` that a program computes."""
WIDEST = 1 << 15
"""Columns of a matrix of `quantise_rows`, at most: a program holds a row in registers."""
MATRICES = 3
"""Matrices of `quantise_rows`, at most."""


@triton.jit
def _add_low_rank(  # type: ignore[no-untyped-def]
    out,
    low,
    up,
    rows,
    columns,
    out_stride,
    low_stride,
    up_stride,
    rank: tl.constexpr,
    padded_rank: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
):
    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(0) * tile_columns + tl.arange(0, tile_columns)
    inner = tl.arange(0, padded_rank)
    a = tl.load(
        low + row[:, None] * low_stride + inner[None, :],
        mask=(row[:, None] < rows) & (inner[None, :] < rank),
        other=0.0,
    )
    b = tl.load(
        up + column[None, :] * up_stride + inner[:, None],
        mask=(column[None, :] < columns) & (inner[:, None] < rank),
        other=0.0,
    )
    place = out + row[:, None].to(tl.int64) * out_stride + column[None, :]
    mask = (row[:, None] < rows) & (column[None, :] < columns)
    total = tl.load(place, mask=mask, other=0.0).to(tl.float32) + tl.dot(a, b)
    tl.store(place, total.to(out.dtype.element_ty), mask=mask)


def add_low_rank(out: torch.Tensor, low: torch.Tensor, up: torch.Tensor) -> None:
    """Adds low up^T to a matrix in place.

    Args:
        out: The matrix [n, columns]; its rows are contiguous.
        low: Left factor [n, r]; its rows are contiguous.
        up: Right factor [columns, r]; its rows are contiguous.
    """
    rows, columns = out.shape
    rank = low.shape[1]
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))
    _add_low_rank[grid](
        out,
        low,
        up,
        rows,
        columns,
        out.stride(0),
        low.stride(0),
        up.stride(0),
        rank=rank,
        padded_rank=max(triton.next_power_of_2(rank), 16),
        tile_rows=ROWS,
        tile_columns=COLUMNS,
        num_warps=4,
    )


@triton.jit
def _load_row(  # type: ignore[no-untyped-def]
    matrix, stride, row, width: tl.constexpr, padded: tl.constexpr
):
    column = tl.arange(0, padded)
    place = matrix + row.to(tl.int64) * stride + column
    return tl.load(place, mask=column < width, other=0.0).to(tl.float32)


@triton.jit
def _store_row(  # type: ignore[no-untyped-def]
    values, row, total, start, data, scale, limit, width: tl.constexpr, padded: tl.constexpr
):
    column = tl.arange(0, padded)
    place = values + row.to(tl.int64) * total + start + column
    scaled = tl.minimum(tl.maximum(data / scale, -limit), limit)
    tl.store(place, scaled.to(values.dtype.element_ty), mask=column < width)


@triton.jit
def _find_largest(data):  # type: ignore[no-untyped-def]
    # A maximum passes over NaN. As infinity it makes the scale of the row infinite, and so its
    # products: that something is not finite must be seen in the loss.
    return tl.max(tl.where(data == data, tl.abs(data), float("inf")), axis=0)


@triton.jit
def _quantise_rows(  # type: ignore[no-untyped-def]
    first,
    second,
    third,
    first_stride,
    second_stride,
    third_stride,
    values,
    scales,
    total,
    limit,
    count: tl.constexpr,
    first_width: tl.constexpr,
    second_width: tl.constexpr,
    third_width: tl.constexpr,
    padded_first: tl.constexpr,
    padded_second: tl.constexpr,
    padded_third: tl.constexpr,
):
    row = tl.program_id(0)
    a = _load_row(first, first_stride, row, first_width, padded_first)
    largest = _find_largest(a)
    if count > 1:
        b = _load_row(second, second_stride, row, second_width, padded_second)
        largest = tl.maximum(largest, _find_largest(b))
    if count > 2:
        c = _load_row(third, third_stride, row, third_width, padded_third)
        largest = tl.maximum(largest, _find_largest(c))
    scale = tl.maximum(largest, 1e-12) / limit
    tl.store(scales + row, scale)
    _store_row(values, row, total, 0, a, scale, limit, first_width, padded_first)
    if count > 1:
        _store_row(values, row, total, first_width, b, scale, limit, second_width, padded_second)
    if count > 2:
        _store_row(
            values,
            row,
            total,
            first_width + second_width,
            c,
            scale,
            limit,
            third_width,
            padded_third,
        )


def can_quantise(matrices: Sequence[torch.Tensor]) -> bool:
    """Returns whether matrices are few and narrow enough for `quantise_rows`."""
    return len(matrices) <= MATRICES and max(m.shape[1] for m in matrices) <= WIDEST


def quantise_rows(
    matrices: Sequence[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises the rows of matrices that stand side by side, each with a scale of its own.

    Args:
        matrices: One to MATRICES matrices [n, columns], none wider than WIDEST; their rows are
            contiguous.
        dtype: The FP8 type.

    Returns:
        The values [n, all columns], and the scales in fp32 [n, 1] by which they are multiplied to
        get the rows back.
    """
    rows = len(matrices[0])
    widths = [matrix.shape[1] for matrix in matrices]
    values = torch.empty(rows, sum(widths), dtype=dtype, device=matrices[0].device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=matrices[0].device)
    # Those that are missing are never read.
    padding = MATRICES - len(matrices)
    all_matrices: list[Any] = [*matrices, *[matrices[0]] * padding]
    all_widths = [*widths, *[1] * padding]
    widest = max(map(triton.next_power_of_2, widths))
    _quantise_rows[(rows,)](
        *all_matrices,
        *[matrix.stride(0) for matrix in all_matrices],
        values,
        scales,
        sum(widths),
        torch.finfo(dtype).max,
        len(matrices),
        *all_widths,
        *[triton.next_power_of_2(width) for width in all_widths],
        num_warps=min(max(widest // 1024, 4), 16),
    )
    return values, scales

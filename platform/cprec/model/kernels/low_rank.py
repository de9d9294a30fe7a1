"""Sums of large matrices and products of low rank, in place, and their gradients.

Shapes: n rows, r the sum of the ranks.
"""

from collections.abc import Sequence

import torch

WIDEST_RANK = 64
"""Rank up to which our own kernel is the faster one."""


def add_low_rank(out: torch.Tensor, low: torch.Tensor, up: torch.Tensor) -> None:
    """Adds the product `low @ up.T` to a matrix, in place.

    Args:
        out: The matrix [n, columns].
        low: Left factor [n, rank].
        up: Right factor [columns, rank].
    """
    in_rows = out.stride(1) == low.stride(1) == up.stride(1) == 1
    if out.is_cuda and out.dtype == torch.bfloat16 and in_rows and low.shape[1] <= WIDEST_RANK:
        # Only there is Triton installed.
        from cprec.model.kernels import triton_kernels

        triton_kernels.add_low_rank(out, low, up)
    else:
        out.addmm_(low, up.t())


def split_columns(low: torch.Tensor, ups: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Splits left factors that stand side by side into one for each right factor.

    Args:
        low: The left factors [n, r].
        ups: The right factors [columns, rank]; their ranks sum to r.
    """
    return torch.split(low, [up.shape[1] for up in ups], dim=1)


def low_rank_gradients(
    gradients: Sequence[torch.Tensor], low: torch.Tensor, ups: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns the gradients of what `add_low_rank` added to several matrices.

    Args:
        gradients: Gradient of each sum [n, its columns].
        low: The left factors, side by side [n, r].
        ups: The right factors [its columns, rank].

    Returns:
        The gradients of `low` and of each of `ups`.
    """
    parts = [gradient @ up for gradient, up in zip(gradients, ups, strict=True)]
    up_gradients = [
        gradient.t() @ part
        for gradient, part in zip(gradients, split_columns(low, ups), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), up_gradients

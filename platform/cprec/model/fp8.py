"""Frozen linear layers in FP8 (e4m3), nearly exact; opt-in by `model.fp8`.

Weights are quantised once; activations and gradients are quantised row by row in every pass.

A frozen layer multiplies by W in the forward pass and by W transposed in the backward pass. Each
direction gets its own copy of the weights with one scale per row. That is one byte per weight and
direction: as much memory as bf16, at twice the speed of matrix products on GPUs that have FP8.
LoRA's own matrices, norms, attention and the output layer stay as they are.
"""

from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
"""Largest value of e4m3."""


def quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises each row with a scale of its own.

    Args:
        rows: Values [n, k].

    Returns:
        The values in e4m3 [n, k], and the scales in fp32 [n, 1] by which they are multiplied to
        get the rows back.
    """
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return (rows.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def scaled_matmul(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiplies rows by a transposed FP8 weight matrix.

    Args:
        rows: Left factor in bf16 [n, k]; it is quantised here.
        weight: Weights in e4m3 [m, k].
        scale: Scales of the weights' rows [m, 1].

    Returns:
        The product in bf16 [n, m].
    """
    values, row_scale = quantise_rows(rows)
    return torch._scaled_mm(
        values, weight.t(), scale_a=row_scale, scale_b=scale.t(), out_dtype=torch.bfloat16
    )


class _FrozenMatmul(torch.autograd.Function):
    """The FP8 product of both directions; only the rows get a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        transposed: torch.Tensor,
        transposed_scale: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(transposed, transposed_scale)
        return scaled_matmul(rows, weight, weight_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        return scaled_matmul(gradient.contiguous(), *ctx.saved_tensors), None, None, None, None


class FrozenFP8Linear(torch.nn.Module):
    """A linear layer without bias whose weights are stored in FP8 and never change."""

    def __init__(self, weight: torch.Tensor) -> None:
        """Quantises the weights for both directions.

        Args:
            weight: Weights [out, in]; both sizes are multiples of 16.
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.matrix_operations = weight.numel()
        """Weights of the layer, by which `train.device.OperationCount` counts its operations."""
        for direction, rows in (("forward", weight), ("backward", weight.t())):
            values, scale = quantise_rows(rows.detach())
            self.register_buffer(f"{direction}_values", values.contiguous(), persistent=False)
            self.register_buffer(f"{direction}_scale", scale.contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the layer to x [..., in] in bf16; returns [..., out] in bf16."""
        out = _FrozenMatmul.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, self.in_features),
            self.forward_values,
            self.forward_scale,
            self.backward_values,
            self.backward_scale,
        )
        return cast(torch.Tensor, out).view(*x.shape[:-1], self.out_features)


def quantise_frozen_layers(model: torch.nn.Module) -> int:
    """Replaces the frozen base layers under LoRA by FP8 layers, in place.

    Layers with a bias, or with a size that is no multiple of 16, stay as they are.

    Returns:
        The number of layers that were replaced.
    """
    replaced = 0
    for module in list(model.modules()):
        base = getattr(module, "base_layer", None)
        if (
            isinstance(base, torch.nn.Linear)
            and base.bias is None
            and not base.weight.requires_grad
            and not any(n % 16 for n in base.weight.shape)
        ):
            module.base_layer = FrozenFP8Linear(base.weight)
            replaced += 1
    return replaced

"""Frozen linear layers in FP8 (e4m3): weights quantised once, activations and gradients row by row as they come. Nearly exact; opt-in (`model.fp8`).

Both directions of a frozen layer are products with the same weights, forward with W and backward with W transposed. Each gets its own copy with one
scale per row, so one byte per weight and direction: as much memory as bf16, twice its matrix rate on GPUs that have FP8. Nothing else changes: LoRA's
own matrices, norms, attention and the output layer stay as they are.
"""

from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, k] as e4m3 and the scale [n, 1] in fp32 that gives them back."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return (rows.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def scaled_matmul(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """rows [n, k] in bf16 times weight [m, k] (e4m3, scale [m, 1]) transposed: [n, m] in bf16."""
    values, rate = quantise_rows(rows)
    return torch._scaled_mm(
        values, weight.t(), scale_a=rate, scale_b=scale.t(), out_dtype=torch.bfloat16
    )


class _FrozenMatmul(torch.autograd.Function):
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
    """A linear layer without bias whose weight [out, in] never changes. Sizes must be multiples of 16."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.matrix_operations = weight.numel()
        for name, rows in (("forth", weight), ("back", weight.t())):
            values, scale = quantise_rows(rows.detach())
            self.register_buffer(name, values.contiguous(), persistent=False)
            self.register_buffer(f"{name}_scale", scale.contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., in] in bf16."""
        rows = x.reshape(-1, self.in_features)
        out = _FrozenMatmul.apply(rows, self.forth, self.forth_scale, self.back, self.back_scale)  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, out).view(*x.shape[:-1], self.out_features)


def quantise_frozen_layers(model: torch.nn.Module) -> int:
    """Replace the frozen base layers under LoRA in place; returns how many. Layers with a bias or of uneven sizes stay as they are."""
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

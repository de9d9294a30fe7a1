"""Frozen linear layers in FP8 (e4m3), nearly exact; opt-in by `model.fp8`.

Weights are quantised once; activations and gradients are quantised row by row in every pass.

A frozen layer multiplies by W in the forward pass and by W transposed in the backward pass. Each
direction gets its own copy of the weights with one scale per row. That is one byte per weight and
direction: as much memory as bf16, at twice the speed of matrix products on GPUs that have FP8.
LoRA's own matrices, norms, attention and the output layer stay as they are.

Layers that read the same input are stored as one matrix. So their input is quantised once, and
their gradients are quantised and multiplied together. Each has an output of its own.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

from cluster.errors import RecipeError
from cprec.model.adapter import layers_by_input
from cprec.model.kernels.low_rank import add_low_rank, low_rank_gradients, split_columns

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
"""Largest value of e4m3."""
FIRST_CAPABILITY = (8, 9)
"""The first compute capability of GPUs that multiply in FP8."""


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


@torch.library.custom_op("cprec::quantise_side_by_side", mutates_args=())
def _quantise_side_by_side(matrices: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises the rows of matrices that stand side by side, as `quantise_rows` does.

    It is an operator of its own because compiled code would read everything twice.
    """
    if matrices[0].is_cuda:
        # Only there is Triton installed.
        from cprec.model.kernels import triton_kernels

        if triton_kernels.can_quantise(matrices):
            return triton_kernels.quantise_rows(
                [m if m.stride(1) == 1 else m.contiguous() for m in matrices], torch.float8_e4m3fn
            )
    return quantise_rows(torch.cat(list(matrices), dim=1))


@_quantise_side_by_side.register_fake
def _(matrices: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = matrices[0].shape[0]
    columns = sum(matrix.shape[1] for matrix in matrices)
    return (
        matrices[0].new_empty(rows, columns, dtype=torch.float8_e4m3fn),
        matrices[0].new_empty(rows, 1, dtype=torch.float32),
    )


def scaled_matmul(
    matrices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    scale: torch.Tensor,
    fast_accumulation: bool,
) -> torch.Tensor:
    """Multiplies rows by a transposed FP8 weight matrix.

    Args:
        matrices: Left factor in bf16, as matrices that stand side by side [n, k]; it is quantised
            here.
        weight: Weights in e4m3 [m, k].
        scale: Scales of the weights' rows [m, 1].
        fast_accumulation: Whether the GPU sums with fewer bits.

    Returns:
        The product in bf16 [n, m].
    """
    values, values_scale = _quantise_side_by_side(list(matrices))
    return _multiply(values, values_scale, weight, scale, fast_accumulation)


def _multiply(
    values: torch.Tensor,
    values_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    fast_accumulation: bool,
) -> torch.Tensor:
    """Multiplies quantised rows [n, k] by a transposed FP8 weight matrix [m, k]."""
    return torch._scaled_mm(
        values,
        weight.t(),
        scale_a=values_scale,
        scale_b=scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=fast_accumulation,
    )


@torch.library.custom_op("cprec::scaled_mm_plus_mm", mutates_args=())
def _scaled_mm_plus_mm(
    rows: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    fast_accumulation: bool,
    low: torch.Tensor,
    ups: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Returns rows weight^T for the outputs of each of `ups`, whose product is added in place.

    It is an operator of its own because the compiler would copy the first product to add to it.
    The results are no parts of one matrix: what keeps one of them would keep the others too, as
    attention, which needs the values in its backward pass, would keep queries and keys.
    """
    values, values_scale = _quantise_side_by_side([rows])
    sizes = [len(up) for up in ups]
    outputs = [
        _multiply(values, values_scale, *part, fast_accumulation)
        for part in zip(torch.split(weight, sizes), torch.split(weight_scale, sizes), strict=True)
    ]
    for output, factor, up in zip(outputs, split_columns(low, ups), ups, strict=True):
        add_low_rank(output, factor, up)
    return outputs


@_scaled_mm_plus_mm.register_fake
def _(
    rows: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    fast_accumulation: bool,
    low: torch.Tensor,
    ups: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    return [rows.new_empty(rows.shape[0], len(up)) for up in ups]


class _FrozenFP8Product(torch.autograd.Function):
    """The FP8 products of both directions, and what LoRA adds to the first."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        low: torch.Tensor | None,
        fast_accumulation: bool,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        transposed: torch.Tensor,
        transposed_scale: torch.Tensor,
        *ups: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.fast_accumulation = fast_accumulation
        if low is None:
            ctx.save_for_backward(transposed, transposed_scale)
            return (scaled_matmul([rows], weight, weight_scale, fast_accumulation),)
        ctx.save_for_backward(transposed, transposed_scale, low, *ups)
        return tuple(
            _scaled_mm_plus_mm(rows, weight, weight_scale, fast_accumulation, low, list(ups))
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        transposed, transposed_scale, *low_rank = ctx.saved_tensors
        rows_gradient = None
        if ctx.needs_input_grad[0]:
            rows_gradient = scaled_matmul(
                gradients, transposed, transposed_scale, ctx.fast_accumulation
            )
        if not low_rank:
            return rows_gradient, *[None] * 6
        low, *ups = low_rank
        low_gradient, up_gradients = low_rank_gradients(gradients, low, ups)
        return rows_gradient, low_gradient, *[None] * 5, *up_gradients


class FrozenFP8Weight(torch.nn.Module):
    """A frozen matrix in FP8, for products in both directions."""

    forward_values: torch.Tensor
    forward_scale: torch.Tensor
    backward_values: torch.Tensor
    backward_scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, fast_accumulation: bool = False) -> None:
        """Quantises the weights for both directions.

        Args:
            weight: Weights [out, in]; both sizes are multiples of 16.
            fast_accumulation: Whether the GPU sums with fewer bits.
        """
        super().__init__()
        self.fast_accumulation = fast_accumulation
        for direction, rows in (("forward", weight), ("backward", weight.t())):
            values, scale = quantise_rows(rows.detach())
            self.register_buffer(f"{direction}_values", values.contiguous(), persistent=False)
            self.register_buffer(f"{direction}_scale", scale.contiguous(), persistent=False)

    def multiply(
        self,
        rows: torch.Tensor,
        start: int,
        stop: int,
        low: torch.Tensor | None = None,
        ups: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, ...]:
        """Multiplies rows by some of the matrix's rows, and adds products of low rank.

        Args:
            rows: Inputs in bf16 [n, in].
            start: First of the matrix's rows.
            stop: The row after the last one.
            low: Inputs of the second products in bf16, side by side [n, r]; None for none.
            ups: Their matrices in bf16 [outputs, rank], whose outputs are those of start..stop.

        Returns:
            The sum in bf16 for each of `ups` [n, its outputs]; one matrix if there is none.
        """
        outputs: Any = _FrozenFP8Product.apply(  # type: ignore[no-untyped-call]
            rows,
            low,
            self.fast_accumulation,
            self.forward_values[start:stop],
            self.forward_scale[start:stop],
            self.backward_values[:, start:stop],
            self.backward_scale,
            *ups,
        )
        return cast(tuple[torch.Tensor, ...], outputs)


class FrozenFP8Linear(torch.nn.Module):
    """A linear layer without bias whose weights are stored in FP8 and never change."""

    def __init__(self, stored: FrozenFP8Weight, start: int, stop: int) -> None:
        """Makes some rows of a stored matrix a layer.

        Args:
            stored: The matrix, which several layers may share.
            start: First of the matrix's rows.
            stop: The row after the last one.
        """
        super().__init__()
        self.stored = stored
        self.start, self.stop = start, stop
        self.in_features: int = stored.forward_values.shape[1]
        self.out_features = stop - start
        self.matrix_operations = self.in_features * self.out_features
        """Weights of the layer, by which `train.device.OperationCount` counts its operations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the layer to x [..., in] in bf16; returns [..., out] in bf16."""
        (out,) = self.stored.multiply(x.reshape(-1, self.in_features), self.start, self.stop)
        return out.view(*x.shape[:-1], self.out_features)


def quantise_frozen_layers(model: torch.nn.Module, fast_accumulation: bool = False) -> int:
    """Replaces the frozen base layers under LoRA by FP8 layers, in place.

    Layers with a bias, or with a size that is no multiple of 16, stay as they are.

    Args:
        model: A model with a LoRA adapter.
        fast_accumulation: Whether the GPU sums products with fewer bits.

    Returns:
        The number of layers that were replaced.

    Raises:
        RecipeError: This process's GPU has no FP8.
    """
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        raise RecipeError(
            f"model.fp8: {torch.cuda.get_device_name()} has no FP8, its compute capability is "
            f"{capability} and 8.9 is the first that has it (Ada, Hopper); set model.fp8: false"
        )
    replaced = 0
    for group in layers_by_input(model):
        fitting = [layer for layer in group if _fits_fp8(layer.base_layer)]
        if fitting:
            _quantise_together(fitting, fast_accumulation)
        replaced += len(fitting)
    return replaced


def _fits_fp8(base: torch.nn.Module) -> bool:
    return (
        isinstance(base, torch.nn.Linear)
        and base.bias is None
        and not base.weight.requires_grad
        and not any(n % 16 for n in base.weight.shape)
    )


def _quantise_together(layers: Sequence[Any], fast_accumulation: bool) -> None:
    """Replaces the base layers of LoRA layers by parts of one FP8 matrix."""
    weights = [layer.base_layer.weight for layer in layers]
    stored = FrozenFP8Weight(torch.cat(weights), fast_accumulation)
    start = 0
    for layer, weight in zip(layers, weights, strict=True):
        layer.base_layer = FrozenFP8Linear(stored, start, start + len(weight))
        start += len(weight)

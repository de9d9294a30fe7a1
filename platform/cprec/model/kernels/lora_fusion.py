"""LoRA at little cost: layers that read the same input are computed as one layer.

PEFT computes a layer as base(x) + scaling * B(A(x)), each in passes of its own over inputs and
outputs. Here, for the layers of one input (q, k and v; gate and up):

- A of all layers is one product, so the input is read once for it, and once for its gradient;
- B's product is added in place to the frozen layer's output;
- a frozen FP8 base quantises the input once, and the gradients of all layers once.

Modules and parameters stay PEFT's, by name and by identity. The results are PEFT's up to rounding,
and dropout draws the same masks. What is not plain LoRA on a frozen layer is left to PEFT.

Shapes: n rows (tokens), r the sum of the layers' ranks, out the sum of their outputs.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable

from cprec.model.adapter import ADAPTER_NAME, layers_by_input
from cprec.model.kernels.fp8 import FrozenFP8Linear
from cprec.model.kernels.low_rank import add_low_rank, low_rank_gradients, split_columns


def fuse_lora(model: torch.nn.Module) -> int:
    """Makes the LoRA layers of a model that read the same input compute as one layer.

    It does not work under ZeRO 3, which gathers a weight only while its own module runs.

    Returns:
        The number of layers that were changed.
    """
    fused = 0
    for group in layers_by_input(model):
        layers: list[Any] = [layer for layer in group if _is_plain(layer)]
        for together in [layers] if _fit_together(layers) else [[layer] for layer in layers]:
            shared = SharedInput(together)
            for position, layer in enumerate(together):
                layer.__class__ = FusedLoraLinear
                layer.shared_input = shared
                layer.position = position
        fused += len(layers)
    return fused


def _is_plain(layer: Any) -> bool:
    """Returns whether a layer is LoRA as it was published, on a frozen layer."""
    return (
        type(layer) is Linear
        and set(layer.lora_A) == {ADAPTER_NAME}
        and not layer.lora_variant
        and not layer.lora_bias[ADAPTER_NAME]
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
    )


def _fit_together(layers: Sequence[Any]) -> bool:
    """Returns whether layers of one input can be one product."""
    bases = [layer.base_layer for layer in layers]
    if not layers or len({layer.scaling[ADAPTER_NAME] for layer in layers}) > 1:
        return False
    if all(isinstance(base, FrozenFP8Linear) for base in bases):
        return all(
            one.stored is other.stored and one.stop == other.start
            for one, other in itertools.pairwise(bases)
        )
    return (
        all(type(base) is torch.nn.Linear for base in bases)
        and len({base.weight.dtype for base in bases}) == 1
        and len({base.bias is None for base in bases}) == 1
    )


class FusedLoraLinear(Linear):
    """PEFT's LoRA layer, computed together with the layers that read the same input.

    Attributes:
        shared_input: The layers that read the same input.
        position: Place of this layer among them.
    """

    shared_input: "SharedInput"
    position: int

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Computes the layer's output [..., out] for x [..., in]."""
        weight = self.lora_A[ADAPTER_NAME].weight
        if (
            args
            or kwargs
            or self.disable_adapters
            or self.merged
            or len(self.lora_A) > 1
            or x.dtype != weight.dtype
        ):
            return super().forward(x, *args, **kwargs)
        return self.shared_input.output(self.position, x)


class SharedInput:
    """The layers that read one input: the first that is called computes the outputs of all.

    Which layers these are is known by their names. A model that gives them different inputs after
    all is computed correctly: the layers are then computed one by one.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        """Remembers the layers, in the order in which the model calls them."""
        self.layers = tuple(layers)
        self.is_shared = len(layers) > 1
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def output(self, position: int, x: torch.Tensor) -> torch.Tensor:
        """Returns the output of one layer.

        Args:
            position: Place of the layer.
            x: Its input [..., in].
        """
        if self._outputs and self._input is not x:
            # Outputs that nobody took: the other layers have another input.
            self.is_shared = False
            self._release()
        if not self.is_shared:
            return compute_layers(self.layers[position : position + 1], x)[0]
        if position not in self._outputs:
            self._input = x
            self._outputs = dict(enumerate(compute_layers(self.layers, x)))
        output = self._outputs.pop(position)
        if not self._outputs:
            self._release()
        return output

    def _release(self) -> None:
        self._input = None
        self._outputs = {}


def compute_layers(layers: Sequence[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Computes the outputs of LoRA layers for one input.

    Args:
        layers: The layers, of equal scaling.
        x: Their input [..., in].

    Returns:
        The output of each layer [..., its outputs].
    """
    matrices = [layer.lora_A[ADAPTER_NAME].weight for layer in layers]
    ups = [layer.lora_B[ADAPTER_NAME].weight for layer in layers]
    dropouts = [layer.lora_dropout[ADAPTER_NAME] for layer in layers]
    if any(dropout.training and getattr(dropout, "p", 0) for dropout in dropouts):
        parts = [F.linear(drop(x), a) for drop, a in zip(dropouts, matrices, strict=True)]
        low = torch.cat(parts, dim=-1)
    else:
        low = F.linear(x, torch.cat(matrices) if len(layers) > 1 else matrices[0])
    outputs = _add_to_frozen(
        [layer.base_layer for layer in layers],
        x.reshape(-1, x.shape[-1]),
        low.reshape(-1, low.shape[-1]),
        [up * layers[0].scaling[ADAPTER_NAME] for up in ups],
    )
    return tuple(output.view(*x.shape[:-1], -1) for output in outputs)


def _add_to_frozen(
    bases: Sequence[Any], rows: torch.Tensor, low: torch.Tensor, ups: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Computes frozen layers and adds products of low rank.

    Args:
        bases: The frozen layers.
        rows: Their input [n, in].
        low: Inputs of the second products, side by side [n, r].
        ups: Their matrices [outputs, rank], one for each layer.

    Returns:
        The sum for each layer [n, its outputs].
    """
    if isinstance(bases[0], FrozenFP8Linear):
        return bases[0].stored.multiply(rows, bases[0].start, bases[-1].stop, low, ups)
    if type(bases[0]) is torch.nn.Linear:
        outputs: tuple[torch.Tensor, ...] = _FrozenProducts.apply(  # type: ignore[no-untyped-call]
            rows,
            low,
            len(bases),
            *ups,
            *[base.weight for base in bases],
            *[base.bias for base in bases],
        )
        return outputs
    return (torch.addmm(bases[0](rows), low, ups[0].t()),)


class _FrozenProducts(torch.autograd.Function):
    """The products with frozen matrices in both directions, and what LoRA adds to the first."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, low: torch.Tensor, count: int, *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        ups: Any = tensors[:count]
        weights, biases = tensors[count : 2 * count], tensors[2 * count :]
        ctx.count = count
        ctx.save_for_backward(low, *ups, *weights)
        return tuple(
            _mm_plus_mm(rows, weight, bias, part, up)
            for weight, bias, part, up in zip(
                weights, biases, split_columns(low, ups), ups, strict=True
            )
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        low, *tensors = ctx.saved_tensors
        ups, weights = tensors[: ctx.count], tensors[ctx.count :]
        rows_gradient = None
        if ctx.needs_input_grad[0]:
            rows_gradient = _sum_of_products(list(gradients), weights)
        low_gradient, up_gradients = low_rank_gradients(gradients, low, ups)
        return rows_gradient, low_gradient, None, *up_gradients, *[None] * (2 * ctx.count)


# These are operators of their own because the compiler would copy what is added to in place.


@torch.library.custom_op("cprec::mm_plus_mm", mutates_args=())
def _mm_plus_mm(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    low: torch.Tensor,
    up: torch.Tensor,
) -> torch.Tensor:
    """Returns rows weight^T + bias + low up^T."""
    out = F.linear(rows, weight, bias)
    add_low_rank(out, low, up)
    return out


@_mm_plus_mm.register_fake
def _(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    low: torch.Tensor,
    up: torch.Tensor,
) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], up.shape[0])


@torch.library.custom_op("cprec::sum_of_products", mutates_args=())
def _sum_of_products(rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of the products of rows and a matrix each."""
    out = rows[0] @ weights[0]
    for part, weight in zip(rows[1:], weights[1:], strict=True):
        out.addmm_(part, weight)
    return out


@_sum_of_products.register_fake
def _(rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return rows[0].new_empty(rows[0].shape[0], weights[0].shape[1])

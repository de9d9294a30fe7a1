"""LoRA at little cost: layers that read the same input are computed as one layer.

PEFT computes a layer as base(x) + scaling * B(A(x)), each in passes of its own over inputs and
outputs. Here, for the layers of one input (q, k and v; gate and up):

- A of all layers is one product, so the input is read once for it, and once for its gradient;
- B of all layers is one product with a block-diagonal matrix, added in place to the frozen output;
- a frozen FP8 base quantises the input once, and the gradients of all layers once.

Modules and parameters stay PEFT's, by name and by identity. The results are PEFT's up to rounding,
and dropout draws the same masks. What is not plain LoRA on a frozen layer is left to PEFT.

Shapes: n rows (tokens), r the sum of the layers' ranks, out the sum of their outputs.
"""

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable

from cprec.model.adapter import ADAPTER_NAME, layers_by_input
from cprec.model.fp8 import FrozenFP8Linear


def fuse_lora(model: torch.nn.Module) -> int:
    """Computes the LoRA layers of a model as this module describes.

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
    up: torch.Tensor = ups[0]
    if len(layers) > 1:
        up = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
    out = _add_to_frozen(
        [layer.base_layer for layer in layers],
        x,
        low.reshape(-1, low.shape[-1]),
        up * layers[0].scaling[ADAPTER_NAME],
    )
    sizes = [len(b) for b in ups]
    # The parts may be changed in place, which those of `split` may not.
    return tuple(torch.unsafe_split_with_sizes(out.view(*x.shape[:-1], -1), sizes, dim=-1))


def _add_to_frozen(
    bases: Sequence[Any], x: torch.Tensor, low: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """Computes frozen layers and adds a product of low rank.

    Args:
        bases: The frozen layers.
        x: Their input [..., in].
        low: Inputs of the second product [n, r].
        up: Its matrix [out, r].

    Returns:
        The sum [n, out].
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(bases[0], FrozenFP8Linear):
        out: torch.Tensor = bases[0].stored(rows, bases[0].start, bases[-1].stop, low, up)
        return out
    if type(bases[0]) is torch.nn.Linear:
        weights = [base.weight for base in bases]
        biases = [base.bias for base in bases if base.bias is not None]
        return cast(
            torch.Tensor,
            _FrozenProduct.apply(  # type: ignore[no-untyped-call]
                rows, low, up, torch.cat(biases) if biases else None, *weights
            ),
        )
    return torch.addmm(bases[0](x).reshape(-1, len(up)), low, up.t())


class _FrozenProduct(torch.autograd.Function):
    """The products with frozen matrices in both directions, and what LoRA adds to the first."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        low: torch.Tensor,
        up: torch.Tensor,
        bias: torch.Tensor | None,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(low, up, *weights)
        return cast(torch.Tensor, _mm_plus_mm(rows, list(weights), bias, low, up))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        low, up, *weights = ctx.saved_tensors
        rows_gradient = None
        if ctx.needs_input_grad[0]:
            if len(weights) == 1:
                rows_gradient = gradient @ weights[0]
            else:
                rows_gradient = _sum_of_products(gradient, weights)
        others = [None] * (1 + len(weights))
        return rows_gradient, gradient @ up, gradient.t() @ low, *others


# These are operators of their own because the compiler would copy what is added to in place.


@torch.library.custom_op("cprec::mm_plus_mm", mutates_args=())
def _mm_plus_mm(
    rows: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    low: torch.Tensor,
    up: torch.Tensor,
) -> torch.Tensor:
    """Returns rows [weights]^T + bias + low up^T; the outputs of the weights stand side by side."""
    out = rows.new_empty(len(rows), len(up))
    start = 0
    for weight in weights:
        part = out[:, start : start + len(weight)]
        if bias is None:
            torch.mm(rows, weight.t(), out=part)
        else:
            torch.addmm(bias[start : start + len(weight)], rows, weight.t(), out=part)
        start += len(weight)
    return out.addmm_(low, up.t())


@_mm_plus_mm.register_fake
def _(
    rows: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    low: torch.Tensor,
    up: torch.Tensor,
) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], up.shape[0])


@torch.library.custom_op("cprec::sum_of_products", mutates_args=())
def _sum_of_products(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of the products of some columns of the rows and a matrix each."""
    parts = torch.split(rows, [len(weight) for weight in weights], dim=1)
    out = parts[0] @ weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out.addmm_(part, weight)
    return out


@_sum_of_products.register_fake
def _(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], weights[0].shape[1])

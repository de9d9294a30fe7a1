"""The last decoder layer, computed for supervised tokens only.

No later layer reads what the last one computes, and the loss reads it for supervised tokens alone.
So only these need the feed-forward part, and on a CPU attention is computed for them alone. It
saves 2 % of a model of 30 layers, and a third of one of two (docs/decisions/046-last-layer.md).

It applies to layers whose forward pass is LLaMA's, word for word. `cprec.train.pack_check` compares
the numbers.
"""

import inspect
from typing import Any, cast

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from cprec.model.self_check import decoder_layers


class TrimmedLayer(torch.nn.Module):
    """A decoder layer like LLaMA's that computes its outputs for given tokens only.

    It stands before the layer's own class, whose forward pass it calls for whole rows.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        packed_supervised: torch.Tensor | None = None,
        **arguments: Any,
    ) -> torch.Tensor:
        """Computes the layer.

        Args:
            hidden_states: Inputs [1, T, hidden].
            args: Further arguments of the layer.
            packed_supervised: Tokens whose outputs are wanted [N]; None for all.
            arguments: Further arguments of the layer, by name.

        Returns:
            The outputs of these tokens [1, N, hidden].
        """
        layer: Any = self
        if packed_supervised is None:
            return cast(torch.Tensor, super().forward(hidden_states, *args, **arguments))
        attended, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(hidden_states),
            packed_queries=packed_supervised,
            **arguments,
        )
        kept = (hidden_states + attended).index_select(1, packed_supervised)
        return cast(torch.Tensor, kept + layer.mlp(layer.post_attention_layernorm(kept)))


class LastLayerTrim:
    """A model whose last layer computes supervised tokens only, until `undo` is called.

    Attributes:
        layer: The last decoder layer.
    """

    def __init__(self, model: torch.nn.Module, layer: torch.nn.Module) -> None:
        """Changes the layer, and what packed passes of the model ask of it.

        Args:
            model: The model as it is called in training.
            layer: Its last decoder layer, one like LLaMA's.
        """
        self.layer = layer
        self._whole_class = type(layer)
        layer.__class__ = type(
            f"Trimmed{self._whole_class.__name__}", (TrimmedLayer, self._whole_class), {}
        )
        self._hook = model.register_forward_pre_hook(_ask_for_supervised, with_kwargs=True)

    def undo(self) -> None:
        """Lets the last layer compute all tokens again."""
        self._hook.remove()
        self.layer.__class__ = self._whole_class


def trim_last_layer(model: torch.nn.Module) -> LastLayerTrim | None:
    """Makes packed passes compute the last layer for supervised tokens only.

    Args:
        model: The model as it is called in training, with packing enabled.

    Returns:
        What undoes it; None for a model with other layers than LLaMA's, which stays as it is.
    """
    layers = decoder_layers(model)
    if not layers or not _is_like_llama(type(layers[-1])):
        return None
    return LastLayerTrim(model, layers[-1])


def parts_for_logits(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Returns the modules that packed passes compute for supervised tokens only."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, TrimmedLayer)]
    return {part for layer in layers for part in layer.mlp.modules()}


def _is_like_llama(layer_class: type[torch.nn.Module]) -> bool:
    """Returns whether a class of layers has the forward pass of LLaMA's.

    transformers copies it into each family that has the same layer. A family whose layer differs in
    anything, such as a factor on the residual stream, has other code.
    """
    codes = [inspect.unwrap(c.forward).__code__ for c in (layer_class, LlamaDecoderLayer)]
    return len({(code.co_code, code.co_names, code.co_varnames) for code in codes}) == 1


def _ask_for_supervised(
    module: torch.nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Passes the tokens that need logits to the last layer, whose outputs then all need them.

    A row without any, such as that of a worker that has no sample in a step, is computed whole.
    """
    is_packed = any(name in arguments for name in ("packed_bounds", "packed_strips"))
    rows = arguments.get("logits_to_keep")
    if is_packed and isinstance(rows, torch.Tensor) and len(rows):
        arguments = {**arguments, "packed_supervised": rows, "logits_to_keep": 0}
    return args, arguments

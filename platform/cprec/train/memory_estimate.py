"""The memory that training takes on one worker, counted term by term from a model's layers.

Nothing is fitted or measured, so the model may be on the meta device. What is counted are the
tensors that autograd keeps in a decoder layer. Layers of unusual kinds (state-space models, other
activations) may keep more; training compares the estimate with the memory that it used.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from cluster.deepspeed_presets import FP32_BYTES, ModelState
from cprec.model import self_check

LOGIT_BYTES = 3 * FP32_BYTES
"""Bytes per logit: log-probabilities, their gradient, and the gradient of the logits."""


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that one decoder layer keeps of each token from its forward to its backward pass.

    Attributes:
        outputs: Outputs of linear layers: queries, keys, values, gate, up; and the residual stream
            behind the attention and behind the layer.
        inputs: Inputs of linear layers, once each: the attention's output always, and where weights
            are trained, the outputs of norms and of the gated product.
        low_rank: LoRA's products of A.
        dropout: Where LoRA has dropout, what it keeps of each input, and instead of it: values and
            mask, for each layer its own.
        norms: What norms keep beside their input and output; eager ones compute in fp32.
        gates: Outputs of the activation function, which compiled layers compute again.
        experts: Inputs and outputs of a mixture's experts.
    """

    outputs: int = 0
    inputs: int = 0
    low_rank: int = 0
    dropout: int = 0
    norms: int = 0
    gates: int = 0
    experts: int = 0

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Linear:
    """A linear layer.

    Attributes:
        inputs: Width of its input.
        outputs: Width of its output.
        rank: Rank of its LoRA adapter; 0: it has none.
        dropout: Dropout of that adapter.
        trained: Whether its own weights are trained.
    """

    inputs: int
    outputs: int
    rank: int
    dropout: float
    trained: bool

    @property
    def keeps_input(self) -> bool:
        """Whether the backward pass needs its input as it is."""
        return self.trained or (self.rank > 0 and not self.dropout)


@dataclass(frozen=True)
class Sublayer:
    """An attention or an MLP: a module that computes with linear layers of its own.

    Its last linear layer reads what the sublayer computed. Those before it read the same input, as
    far as it is equally wide.

    Attributes:
        linears: Its linear layers, in their order.
        is_attention: Whether it is an attention, whose backward pass needs its output.
    """

    linears: tuple[Linear, ...]
    is_attention: bool

    @property
    def kept_inputs(self) -> int:
        """Values of a token that the sublayer's linear layers keep for the backward pass.

        Layers that read the same input keep it once.
        """
        *first, last = self.linears
        shared = {linear.inputs for linear in first if linear.keeps_input}
        return sum(shared) + (last.inputs if last.keeps_input or self.is_attention else 0)

    @property
    def gate(self) -> int:
        """Width of the gate of a gated MLP (gate, up, down); 0 for other sublayers."""
        *wide, down = self.linears
        gated = len(wide) == 2 and all(linear.outputs == down.inputs for linear in wide)
        fused = len(wide) == 1 and wide[0].outputs == 2 * down.inputs
        return down.inputs if (gated or fused) and not self.is_attention else 0

    @property
    def width(self) -> int:
        """Width of all outputs, and of what the last layer reads."""
        return sum(linear.outputs for linear in self.linears) + self.linears[-1].inputs


@dataclass(frozen=True)
class MemoryEstimate:
    """What training a model takes on one worker.

    Attributes:
        state: Weights, gradients and optimizer state.
        layers: Decoder layers.
        layer: What one of them keeps of a token [bytes].
        hidden_bytes: A token in the residual stream [bytes].
        working_bytes: Gradients of a token in the widest sublayer of a layer [bytes].
        vocabulary: Outputs of the output layer.
    """

    state: ModelState
    layers: int
    layer: LayerActivations
    hidden_bytes: int
    working_bytes: int
    vocabulary: int

    @classmethod
    def from_model(cls, model: torch.nn.Module, precision: str, compiled: bool) -> "MemoryEstimate":
        """Counts a model.

        Args:
            model: The model with its trainable part, before DeepSpeed has it; of any device.
            precision: fp32 or bf16, in which it is trained.
            compiled: Whether its layers are compiled.
        """
        element_bytes = 2 if precision == "bf16" else FP32_BYTES
        config = self_check.text_config(model)
        hidden = int(config.hidden_size)
        layers = self_check.decoder_layers(model)
        # All of them are alike, but for those of which nothing is trained.
        first = max(layers, key=_count_trained) if layers else model
        sublayers = list(_sublayers(first))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(
            state=ModelState(
                frozen_parameters=sum(p.numel() for p in model.parameters()) - trained,
                trained_parameters=trained,
                buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
                element_bytes=element_bytes,
            ),
            layers=int(config.num_hidden_layers),
            layer=count_layer(first, hidden, element_bytes, compiled, config),
            hidden_bytes=hidden * element_bytes,
            working_bytes=element_bytes
            * (hidden + max((sublayer.width for sublayer in sublayers), default=0)),
            vocabulary=int(config.vocab_size),
        )

    def activation_bytes(self, tokens: int, recompute: bool) -> float:
        """Returns the bytes that a forward pass keeps for its backward pass.

        Args:
            tokens: Tokens of the pass, with filling.
            recompute: Whether only the layers' inputs are kept, and one layer at a time is computed
                again in the backward pass.
        """
        # Around the layers: embeddings, and the last norm, in fp32 and as it is.
        per_token = 3 * self.hidden_bytes
        if recompute:
            per_token += self.layers * self.hidden_bytes + self.layer.total
        else:
            per_token += self.layers * self.layer.total
        return float(tokens * per_token)

    def peak_bytes(
        self, zero_stage: int, world_size: int, recompute: bool, tokens: int, supervised_tokens: int
    ) -> float:
        """Returns the peak of a step.

        Args:
            zero_stage: ZeRO stage of DeepSpeed.
            world_size: Number of workers.
            recompute: Whether activations are recomputed.
            tokens: Tokens of the longest pass, with filling.
            supervised_tokens: Its tokens that have logits.
        """
        state = sum(self.state.bytes_by_kind(zero_stage, world_size).values())
        # The backward pass begins with the logits and goes on to the layers.
        working = max(
            supervised_tokens * self.vocabulary * LOGIT_BYTES, tokens * self.working_bytes
        )
        return state + max(
            self.activation_bytes(tokens, recompute) + working,
            self.state.update_bytes(zero_stage, world_size),
        )


def count_layer(
    layer: torch.nn.Module, hidden: int, element_bytes: int, compiled: bool, config: Any
) -> LayerActivations:
    """Counts what a decoder layer keeps of a token.

    Args:
        layer: The layer.
        hidden: Width of the residual stream.
        element_bytes: Bytes of an activation.
        compiled: Whether the layer is compiled. It then keeps what is cheap to read and computes
            norms and activation functions again.
        config: The model's configuration, which tells how many experts a token has.
    """
    sublayers = list(_sublayers(layer))
    linears = [linear for sublayer in sublayers for linear in sublayer.linears]
    dropped = [linear for linear in linears if linear.rank and linear.dropout]
    inputs = sum(sublayer.kept_inputs for sublayer in sublayers)
    gates = 0 if compiled else sum(sublayer.gate for sublayer in sublayers)
    top_k = int(getattr(config, "num_experts_per_tok", None) or 1)
    experts = sum(sum(p.shape[1:]) for p in layer.parameters() if p.dim() == 3)  # [expert, n, m]
    return LayerActivations(
        outputs=element_bytes * sum(linear.outputs for linear in linears),
        inputs=element_bytes * inputs,
        low_rank=element_bytes * sum(linear.rank for linear in linears),
        dropout=(element_bytes + 1) * sum(linear.inputs for linear in dropped),
        norms=sum(_norm_bytes(layer, hidden, element_bytes, compiled)),
        gates=element_bytes * gates,
        experts=element_bytes * top_k * experts,
    )


def _count_trained(layer: torch.nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def _sublayers(module: torch.nn.Module) -> Iterator[Sublayer]:
    """Yields the modules that have linear layers."""
    linears = []
    for child in module.children():
        base: Any = getattr(child, "base_layer", child)  # within PEFT's layer
        if isinstance(base, Conv1D):
            linears.append(_describe(child, base, base.nx, base.nf))
        elif hasattr(base, "in_features"):
            linears.append(_describe(child, base, base.in_features, base.out_features))
        else:
            yield from _sublayers(child)
    if linears:
        yield Sublayer(tuple(linears), "attention" in type(module).__name__.lower())


def _describe(layer: Any, base: Any, inputs: int, outputs: int) -> Linear:
    """Describes a linear layer.

    Args:
        layer: PEFT's layer around it, or the layer itself.
        base: The layer itself.
        inputs: Width of its input.
        outputs: Width of its output.
    """
    weight = getattr(base, "weight", None)  # a layer in FP8 has none
    dropouts = getattr(layer, "lora_dropout", {}).values()
    return Linear(
        inputs,
        outputs,
        rank=sum(getattr(layer, "r", {}).values()),
        dropout=max((getattr(dropout, "p", 0.0) for dropout in dropouts), default=0.0),
        trained=weight is not None and weight.requires_grad,
    )


def _norm_bytes(
    layer: torch.nn.Module, hidden: int, element_bytes: int, compiled: bool
) -> Iterator[int]:
    """Yields what each norm of a layer keeps of a token beside its input and output."""
    for parent in layer.modules():
        for name, norm in parent.named_children():
            weight = getattr(norm, "weight", None)
            if "norm" not in type(norm).__name__.lower() or weight is None:
                continue
            width = int(weight.numel())
            kept = 0
            if width != hidden:  # of queries or keys: the attention keeps its output
                projection = getattr(parent, f"{name.split('_')[0]}_proj", None)
                width = int(getattr(projection, "out_features", width))
                kept += element_bytes
            if not compiled and not isinstance(norm, torch.nn.LayerNorm):
                # It computes in fp32, and a trained weight keeps what it multiplies.
                kept += FP32_BYTES - element_bytes
                kept += element_bytes if weight.requires_grad else 0
            yield width * kept

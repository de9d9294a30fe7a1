"""DeepSpeed's configuration by ZeRO stage, and which stage a model needs to fit. One place, so that a key is never spelled twice.

The sizes are counted, not measured: weights, gradients, fp32 masters and Adam's two moments, and what a layer keeps for its
backward pass. They choose a default; the recipe may say otherwise.
"""

from dataclasses import dataclass
from typing import Any

OPTIMIZER_STATE_BYTES = 12
"""Of a trained weight: master and two moments in fp32."""
GRADIENT_BYTES = 4
USABLE_MEMORY_FRACTION = 0.9
"""Share of the memory that is planned with: the rest is the allocator's and the kernels' own."""


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on. weights, trained: counts; hidden, intermediate: sizes of a layer; weight_bytes: of one weight as it is held."""

    num_parameters: int
    num_trainable: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    bytes_per_parameter: int

    def model_state_bytes(self, zero_stage: int, world_size: int) -> float:
        """Weights, gradients and optimizer of one worker."""
        weights = (
            self.num_parameters * self.bytes_per_parameter / (world_size if zero_stage == 3 else 1)
        )
        gradients = self.num_trainable * GRADIENT_BYTES / (world_size if zero_stage >= 2 else 1)
        return (
            weights
            + gradients
            + self.num_trainable * OPTIMIZER_STATE_BYTES / (world_size if zero_stage >= 1 else 1)
        )

    def activation_bytes(self, tokens: int, recompute: bool) -> float:
        """What the backward pass finds of a forward pass over some tokens: every layer's input, and unless recomputed what is within the layers.

        A layer keeps about 16 times its hidden size (norms in fp32, queries, keys, values, LoRA's inputs) and 4 times the intermediate.
        """
        within = (16 * self.hidden_size + 4 * self.intermediate_size) * self.bytes_per_parameter
        inputs = self.num_layers * self.hidden_size * self.bytes_per_parameter
        return float(tokens * (inputs + within if recompute else self.num_layers * within))


def choose_zero_stage(
    model_size: ModelSize, world_size: int, tokens: int, memory_bytes: float
) -> int:
    """The lowest ZeRO stage at which a model and its recomputed activations fit, 3 if none does: each stage more costs communication."""
    room = USABLE_MEMORY_FRACTION * memory_bytes - model_size.activation_bytes(
        tokens, recompute=True
    )
    return next((s for s in range(3) if model_size.model_state_bytes(s, world_size) <= room), 3)


def needs_recompute(
    model_size: ModelSize, zero_stage: int, world_size: int, tokens: int, memory_bytes: float
) -> bool:
    """Whether activations must be recomputed in the backward pass, which costs a third more time, because they do not fit otherwise."""
    return (
        model_size.model_state_bytes(zero_stage, world_size)
        + model_size.activation_bytes(tokens, recompute=False)
        > USABLE_MEMORY_FRACTION * memory_bytes
    )


def build_config(
    zero_stage: int, world_size: int, precision: str, clip_norm: float
) -> dict[str, Any]:
    """The configuration of one engine.

    The loop cuts each global batch itself and calls step() once per global batch, so gradient accumulation is the caller's
    (`managed_gradient_accumulation`): shares may then differ in size by a sample, and no sample is ever dropped.
    """
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip_norm,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": False},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }

"""DeepSpeed's configuration by ZeRO stage, and which stage a model needs to fit. One place, so that a key is never spelled twice.

The sizes are counted, not measured: weights, gradients, fp32 masters and Adam's two moments, and what a layer keeps for its
backward pass. They choose a default; the recipe may say otherwise.
"""

from dataclasses import dataclass
from typing import Any

STATE_BYTES = 12
"""Of a trained weight: master and two moments in fp32."""
GRADIENT_BYTES = 4
HEADROOM = 0.9
"""Share of the memory that is planned with: the rest is the allocator's and the kernels' own."""


@dataclass(frozen=True)
class Shape:
    """What memory depends on. weights, trained: counts; hidden, intermediate: sizes of a layer; weight_bytes: of one weight as it is held."""

    weights: int
    trained: int
    layers: int
    hidden: int
    intermediate: int
    weight_bytes: int

    def model_bytes(self, stage: int, world: int) -> float:
        """Weights, gradients and optimizer of one worker."""
        weights = self.weights * self.weight_bytes / (world if stage == 3 else 1)
        gradients = self.trained * GRADIENT_BYTES / (world if stage >= 2 else 1)
        return weights + gradients + self.trained * STATE_BYTES / (world if stage >= 1 else 1)

    def activation_bytes(self, tokens: int, recomputed: bool) -> float:
        """What the backward pass finds of a forward pass over some tokens: every layer's input, and unless recomputed what is within the layers.

        A layer keeps about 16 times its hidden size (norms in fp32, queries, keys, values, LoRA's inputs) and 4 times the intermediate.
        """
        within = (16 * self.hidden + 4 * self.intermediate) * self.weight_bytes
        inputs = self.layers * self.hidden * self.weight_bytes
        return float(tokens * (inputs + within if recomputed else self.layers * within))


def stage(shape: Shape, world: int, tokens: int, memory_bytes: float) -> int:
    """The lowest ZeRO stage at which a model and its recomputed activations fit, 3 if none does: each stage more costs communication."""
    room = HEADROOM * memory_bytes - shape.activation_bytes(tokens, recomputed=True)
    return next((s for s in range(3) if shape.model_bytes(s, world) <= room), 3)


def recompute(shape: Shape, zero_stage: int, world: int, tokens: int, memory_bytes: float) -> bool:
    """Whether activations must be recomputed in the backward pass, which costs a third more time, because they do not fit otherwise."""
    return (
        shape.model_bytes(zero_stage, world) + shape.activation_bytes(tokens, recomputed=False)
        > HEADROOM * memory_bytes
    )


def config(zero_stage: int, world: int, precision: str, clip_norm: float) -> dict[str, Any]:
    """The configuration of one engine.

    The loop cuts each global batch itself and calls step() once per global batch, so gradient accumulation is the caller's
    (`managed_gradient_accumulation`): shares may then differ in size by a sample, and no sample is ever dropped.
    """
    return {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip_norm,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": False},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }

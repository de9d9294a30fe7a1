"""DeepSpeed's configuration for each ZeRO stage, and the lowest stage at which a model fits.

Memory is estimated from counts, not measured: weights, gradients, fp32 master weights, Adam's two
moments, and the activations that each layer keeps for its backward pass. The estimate only chooses
a default; the recipe can override it.
"""

from dataclasses import dataclass
from typing import Any

OPTIMIZER_STATE_BYTES = 12
"""Bytes of optimizer state per trained parameter: master weight and two moments, all in fp32."""
GRADIENT_BYTES = 4
"""Bytes of gradient per trained parameter."""
USABLE_MEMORY_FRACTION = 0.9
"""Fraction of the memory to plan with; the allocator and the kernels need the rest."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that decide how much memory its training takes.

    Attributes:
        num_parameters: All parameters, trained or frozen.
        num_trainable: Parameters that are trained.
        num_layers: Transformer layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layers.
        bytes_per_parameter: Size of a stored weight or activation [bytes].
    """

    num_parameters: int
    num_trainable: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    bytes_per_parameter: int

    def model_state_bytes(self, zero_stage: int, world_size: int) -> float:
        """Returns the bytes of weights, gradients and optimizer state on one worker."""
        # ZeRO partitions the optimizer state from stage 1 on, gradients from 2, weights at 3.
        weights = (
            self.num_parameters * self.bytes_per_parameter / (world_size if zero_stage == 3 else 1)
        )
        gradients = self.num_trainable * GRADIENT_BYTES / (world_size if zero_stage >= 2 else 1)
        optimizer_state = (
            self.num_trainable * OPTIMIZER_STATE_BYTES / (world_size if zero_stage >= 1 else 1)
        )
        return weights + gradients + optimizer_state

    def activation_bytes(self, tokens: int, recompute: bool) -> float:
        """Returns the bytes that a forward pass keeps for its backward pass.

        Per token, a layer keeps about 16 times its hidden size (norms in fp32, queries, keys,
        values, LoRA's inputs) and 4 times its intermediate size.

        Args:
            tokens: Tokens in the forward pass.
            recompute: Whether only the layers' inputs are kept and one layer at a time is computed
                again in the backward pass.
        """
        within_layer = (
            16 * self.hidden_size + 4 * self.intermediate_size
        ) * self.bytes_per_parameter
        layer_inputs = self.num_layers * self.hidden_size * self.bytes_per_parameter
        per_token = layer_inputs + within_layer if recompute else self.num_layers * within_layer
        return float(tokens * per_token)


def choose_zero_stage(
    model_size: ModelSize, world_size: int, tokens: int, memory_bytes: float
) -> int:
    """Returns the lowest ZeRO stage at which a model fits, because higher stages communicate more.

    Activations are taken to be recomputed in the backward pass.

    Args:
        model_size: The model's sizes.
        world_size: Workers that share the model state.
        tokens: Tokens of a micro-batch.
        memory_bytes: Memory of one worker's device [bytes].

    Returns:
        0 to 3; 3 also if the model fits at no stage.
    """
    available = USABLE_MEMORY_FRACTION * memory_bytes - model_size.activation_bytes(
        tokens, recompute=True
    )
    return next(
        (
            stage
            for stage in range(3)
            if model_size.model_state_bytes(stage, world_size) <= available
        ),
        3,
    )


def needs_recompute(
    model_size: ModelSize, zero_stage: int, world_size: int, tokens: int, memory_bytes: float
) -> bool:
    """Returns whether the model fits only if the backward pass recomputes activations.

    Recomputing costs about a third more time. Arguments as for `choose_zero_stage`.
    """
    return (
        model_size.model_state_bytes(zero_stage, world_size)
        + model_size.activation_bytes(tokens, recompute=False)
        > USABLE_MEMORY_FRACTION * memory_bytes
    )


def build_config(
    zero_stage: int, world_size: int, precision: str, clip_norm: float
) -> dict[str, Any]:
    """Returns the configuration of one DeepSpeed engine.

    The training loop splits each global batch itself and calls `step()` once per global batch, so
    DeepSpeed must not count micro-batches (`managed_gradient_accumulation`). Workers may then get
    parts of slightly different size, and no sample is ever dropped.
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

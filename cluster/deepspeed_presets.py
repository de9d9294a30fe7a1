"""DeepSpeed's configuration for each ZeRO stage, and the memory that it keeps for the model."""

from dataclasses import dataclass
from typing import Any

REDUCE_BUCKET_ELEMENTS = 500_000_000
"""Elements of the buffer in which ZeRO 1 to 3 average gradients; DeepSpeed's default."""
LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO 3 holds gathered, at most; DeepSpeed's default."""
FP32_BYTES = 4
ADAM_BYTES = 2 * FP32_BYTES
"""Bytes of Adam's two moments per trained parameter."""


@dataclass(frozen=True)
class ModelState:
    """What a worker keeps of a model, and of what its training needs, between passes.

    Attributes:
        frozen_parameters: Parameters that are not trained.
        trained_parameters: Parameters that are trained, whatever their number format: all are
            converted to that of training, and the optimizer keeps fp32 copies.
        buffer_bytes: Bytes of buffers, which stay as they are: frozen layers in FP8.
        element_bytes: Bytes of a weight, gradient or activation in training.
    """

    frozen_parameters: int
    trained_parameters: int
    buffer_bytes: int
    element_bytes: int

    def bytes_by_kind(self, zero_stage: int, world_size: int) -> dict[str, float]:
        """Returns the bytes on one worker: weights, buffers, gradients, optimizer.

        Without ZeRO, gradients are summed in fp32, beside those of a pass. ZeRO partitions the
        optimizer state from stage 1 on, gradients from 2, weights at 3.
        """
        parameters = self.frozen_parameters + self.trained_parameters
        weights = parameters / world_size if zero_stage == 3 else float(parameters)
        if zero_stage == 3 and world_size > 1:
            weights += min(parameters, LIVE_PARAMETERS)
        # In fp32 without ZeRO, Adam updates the weights themselves.
        is_fp32 = self.element_bytes == FP32_BYTES
        master_bytes = 0 if is_fp32 and not zero_stage else FP32_BYTES
        if zero_stage:
            own = self.trained_parameters / (world_size if zero_stage >= 2 else 1)
            gradients = (own + REDUCE_BUCKET_ELEMENTS) * self.element_bytes
        else:
            pass_bytes = 0 if is_fp32 else self.element_bytes
            gradients = float(self.trained_parameters * (FP32_BYTES + pass_bytes))
        return {
            "weights": weights * self.element_bytes,
            "buffers": float(self.buffer_bytes),
            "gradients": gradients,
            "optimizer": self._own_parameters(zero_stage, world_size) * (master_bytes + ADAM_BYTES),
        }

    def update_bytes(self, zero_stage: int, world_size: int) -> float:
        """Returns the bytes that are needed beside when activations are freed again.

        Those are the gradients as the last pass leaves them, and under ZeRO those in fp32.
        """
        own = self._own_parameters(zero_stage, world_size)
        return own * (FP32_BYTES if zero_stage else self.element_bytes)

    def _own_parameters(self, zero_stage: int, world_size: int) -> float:
        """Returns the number of parameters that a worker updates."""
        return self.trained_parameters / (world_size if zero_stage else 1)


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
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
        },
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }

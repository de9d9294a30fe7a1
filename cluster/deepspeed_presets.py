"""DeepSpeed's configuration, by ZeRO stage. One place, so that a key is never spelled twice."""

from typing import Any


def config(stage: int, world: int, precision: str, clip_norm: float) -> dict[str, Any]:
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
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }

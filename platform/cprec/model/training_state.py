"""The state of training by parameter name, as the engine gathers it and checkpoints store it."""

from dataclasses import dataclass

import torch

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's first and second moment, by torch's names."""


@dataclass(frozen=True)
class TrainingState:
    """Trained parameters and Adam's moments in fp32.

    It is complete on rank 0; other ranks need not hold it.

    Attributes:
        weights: Trained parameters by name, whole.
        moments: For each of `ADAM_MOMENTS`, the values by parameter name, whole; empty before the
            first step.
        steps: Optimizer steps so far.
    """

    weights: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]
    steps: int

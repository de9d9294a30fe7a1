"""What training has learned, by name: what the engine gathers and restores, and checkpoints keep."""

from dataclasses import dataclass

import torch

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by the names that torch gives them."""


@dataclass(frozen=True)
class TrainingState:
    """Trained parameters in fp32 and Adam's moments, by name and whole. Full on rank 0; other ranks may hold them too."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]
    steps: int

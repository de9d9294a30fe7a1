"""What the device does: operations of a step, memory in use, the rate of a matrix product. So that a run can be held against what is possible."""

import resource
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

MATRIX_SIZE = 8192
"""Rows and columns of the matrices whose product is timed."""
TIMED_PRODUCTS = 10


@dataclass(frozen=True)
class OperationCount:
    """Matrix operations of a model, by count: per token, and per token whose logits are computed. Attention's products are left out (1-2 %)."""

    per_token: int
    per_logit: int

    @classmethod
    def from_model(cls, model: torch.nn.Module, vocab_size: int) -> "OperationCount":
        """Forward pass and gradients of the inputs take 2 operations per weight each; those of the weights 2 more where they are trained.

        vocabulary: rows of the output layer, by which it is told from the others.
        """
        token = logit = 0
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(module, torch.nn.Linear) and not hasattr(module, "matrix_operations"):
                continue
            size = int(getattr(module, "matrix_operations", 0))
            if not size and weight is not None:
                size = int(getattr(weight, "ds_numel", 0) or weight.numel())
            operations = size * (6 if weight is not None and weight.requires_grad else 4)
            if getattr(module, "out_features", 0) == vocab_size:
                logit += operations
            else:
                token += operations
        return cls(token, logit)

    def step_operations(self, tokens: int, supervised_tokens: int) -> int:
        """Of one step."""
        return tokens * self.per_token + supervised_tokens * self.per_logit


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: on the GPU, or in main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@lru_cache(maxsize=2)
def measure_matmul_flops(
    device: torch.device, dtype: torch.dtype, size: int = MATRIX_SIZE
) -> float:
    """Operations per second of a product of random matrices: the rate that a training step is held against. Takes a fraction of a second on a GPU."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(2):
        a @ b
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(TIMED_PRODUCTS):
        a @ b
    _synchronize(device)
    return TIMED_PRODUCTS * 2 * size**3 / (time.perf_counter() - began)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""The device: operations of a step, memory in use, possible speed, a process group of one."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from cprec.model.kernels import last_layer

MATRIX_SIZE = 8192
"""Rows and columns of the matrices whose product is timed."""

TIMED_PRODUCTS = 10
"""Products that are timed, after two that warm up."""


@dataclass(frozen=True)
class OperationCount:
    """Operations of a model's matrix products in one training step.

    The products of attention are left out (1-2 %).

    Attributes:
        per_token: Operations per token.
        per_logit: Operations per token whose logits are computed, in addition.
    """

    per_token: int
    per_logit: int

    @classmethod
    def from_model(cls, model: torch.nn.Module, vocab_size: int) -> "OperationCount":
        """Counts the operations of a model.

        The forward pass and the gradients of the inputs take 2 operations per weight each. The
        gradients of the weights take 2 more, where weights are trained.

        Args:
            model: The model.
            vocab_size: Outputs of the output layer, which distinguish it from the other layers.
        """
        per_token = per_logit = 0
        for_logits = last_layer.parts_for_logits(model)
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(module, torch.nn.Linear) and not hasattr(module, "matrix_operations"):
                continue
            size = int(getattr(module, "matrix_operations", 0))
            if not size and weight is not None:
                # Under ZeRO 3 a weight is empty until its layer runs; `ds_numel` is its full size.
                size = int(getattr(weight, "ds_numel", 0) or weight.numel())
            operations = size * (6 if weight is not None and weight.requires_grad else 4)
            if getattr(module, "out_features", 0) == vocab_size or module in for_logits:
                per_logit += operations
            else:
                per_token += operations
        return cls(per_token, per_logit)

    def step_operations(self, tokens: int, supervised_tokens: int) -> int:
        """Returns the operations of one step.

        Args:
            tokens: Tokens of the step that are computed.
            supervised_tokens: Tokens whose logits are computed.
        """
        return tokens * self.per_token + supervised_tokens * self.per_logit


def worker_device() -> torch.device:
    """Returns this worker's GPU, which becomes the current one, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # The workers of a node see all its GPUs, and each takes that of its number, as DeepSpeed does.
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number < torch.cuda.device_count():
        torch.cuda.set_device(number)
    return torch.device("cuda", torch.cuda.current_device())


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak memory of this process so far, on its GPU or in main memory (bytes)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@lru_cache(maxsize=2)
def measure_matmul_flops(
    device: torch.device, dtype: torch.dtype, size: int = MATRIX_SIZE
) -> float:
    """Measures how fast the device multiplies random matrices (operations per second).

    A training step is compared with this speed. Takes a fraction of a second on a GPU.

    Args:
        device: The device.
        dtype: Number format of the matrices.
        size: Rows and columns of the matrices.
    """
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    for _ in range(2):
        a @ b
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(TIMED_PRODUCTS):
        a @ b
    _synchronize(device)
    return TIMED_PRODUCTS * 2 * size**3 / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def single_process_group(backend: str) -> Iterator[None]:
    """Provides a process group of this process alone.

    An engine that is closed inside the block destroys the group with it.

    Args:
        backend: Backend of torch.distributed: `gloo` or `nccl`.
    """
    # DeepSpeed reads these even if the process group exists already.
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

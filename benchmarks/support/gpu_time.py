"""What a GPU can do, and where its time goes: measured ceilings, and kernels by kind."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from cprec.model.kernels import fp8 as fp8_kernels
from cprec.train import device

COPIED_BYTES = 1 << 31
"""Bytes of the copy that measures memory bandwidth on a GPU."""
TIMED_COPIES = 10
SMALLEST_FROZEN_SIDE = 256
"""A product with a shorter side is one of LoRA's: no frozen matrix of a model is so narrow."""

PRODUCTS = "matrix products"
LORA_PRODUCTS = "of them LoRA's"
KINDS = {
    "attention": ("flash", "fmha", "attention"),
    PRODUCTS: ("nvjet", "gemm", "cutlass", "cublas", "splitk", "gemv"),
    "quantisation": ("amax", "quantise"),
    "optimizer": ("adam", "multi_tensor", "foreach"),
    "copies": ("memcpy", "memset", "copy_kernel"),
    "norms, rotary, activations": ("triton",),
}
"""Parts of the names of kernels, by what the kernels do; the first kind that fits counts."""
OTHER = "other kernels"
IDLE = "idle"


@dataclass(frozen=True)
class Ceilings:
    """The most that the device reaches in simple cases.

    Attributes:
        bf16: Operations per second of a product of bf16 matrices (fp32 without a GPU).
        fp8: The same in FP8, each row with a scale of its own; 0 where there is none.
        fp8_fast: The same with fast accumulation; 0 where there is none.
        copy: Bytes per second of a copy, read and written.
    """

    bf16: float
    fp8: float
    fp8_fast: float
    copy: float


def measure_ceilings(on_device: torch.device, toy: bool) -> Ceilings:
    """Measures the ceilings of a device.

    Args:
        on_device: The device.
        toy: Whether to take small matrices, to see it run on a CPU.
    """
    on_gpu = on_device.type == "cuda"
    size = 256 if toy else device.MATRIX_SIZE
    bf16 = device.measure_matmul_flops(on_device, torch.bfloat16 if on_gpu else torch.float32, size)
    fp8 = fp8_fast = 0.0
    if on_gpu and torch.cuda.get_device_capability(on_device) >= fp8_kernels.FIRST_CAPABILITY:
        rows = torch.randn(size, size, device=on_device).to(torch.float8_e4m3fn)
        scale = torch.ones(size, 1, device=on_device)

        def multiply(fast: bool) -> None:
            torch._scaled_mm(
                rows, rows.t(), scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=fast
            )

        fp8, fp8_fast = (
            2 * size**3 / _seconds(lambda f=fast: multiply(f)) for fast in (False, True)
        )
    source = torch.empty(COPIED_BYTES if on_gpu else 1 << 20, dtype=torch.uint8, device=on_device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / _seconds(lambda: target.copy_(source))
    return Ceilings(bf16, fp8, fp8_fast, copy)


def _seconds(work: Callable[[], object]) -> float:
    """Returns the seconds of one call in ten, after one that warms up."""
    work()
    synchronize()
    began = time.perf_counter()
    for _ in range(TIMED_COPIES):
        work()
    synchronize()
    return (time.perf_counter() - began) / TIMED_COPIES


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kind_of(kernel: str) -> str:
    """Returns the kind of a kernel by its name."""
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), OTHER)


def seconds_by_kind(profiler: torch.profiler.profile) -> tuple[dict[str, float], int]:
    """Returns the device's seconds by kind of kernel, and the number of kernels launched.

    Without a GPU these are the operators of the CPU.

    Args:
        profiler: A profile, with shapes.
    """
    on_gpu = torch.cuda.is_available()
    seconds = dict.fromkeys([*KINDS, OTHER], 0.0)
    launched = 0
    for event in profiler.key_averages():
        is_range = event.is_user_annotation  # a name around kernels that are counted themselves
        if not is_range and on_gpu == (event.device_type == torch.autograd.DeviceType.CUDA):
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            kind = kind_of(event.key) if on_gpu else _kind_of_operator(event.key)
            seconds[kind] += microseconds / 1e6
            launched += event.count
    seconds[LORA_PRODUCTS] = _lora_seconds(profiler.key_averages(group_by_input_shape=True), on_gpu)
    return seconds, launched


def _kind_of_operator(name: str) -> str:
    """Returns the kind of an operator of the CPU."""
    short = name.removeprefix("aten::")
    return PRODUCTS if short in ("mm", "addmm", "bmm", "_scaled_mm") else kind_of(short)


def _lora_seconds(averages: Iterable[Any], on_gpu: bool) -> float:
    """Returns the seconds of products that have a short side."""
    total = 0.0
    for event in averages:
        if event.key not in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::_scaled_mm"):
            continue
        sides = [side for shape in event.input_shapes if len(shape) == 2 for side in shape]
        if sides and min(sides) < SMALLEST_FROZEN_SIDE:
            total += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return total / 1e6

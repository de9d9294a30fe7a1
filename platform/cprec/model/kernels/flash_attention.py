"""Variable-length flash attention: one call for all sequences of a row, on a GPU in half precision.

PyTorch ships FlashAttention 2. Where the package of a newer one is installed, that is taken:
FlashAttention 3 on Hopper, which PyTorch puts in its place, or FlashAttention 4 on Hopper and
Blackwell (`cprec.model.kernels.flash_attention_4`). `kernel_name` says which one runs.

Shapes: T tokens, S sequences, H query heads, K key heads, D head size.
"""

import inspect
import logging
from functools import cache, partial
from typing import Any

import torch

log = logging.getLogger(__name__)

TORCH_KERNEL = "FlashAttention 2"
"""The kernel that PyTorch ships."""
NEWER_KERNELS = {"FlashAttention 3": (9,), "FlashAttention 4": (9, 10)}
"""Newer kernels, with the compute capabilities that they are for."""
TOLERANCE = 0.02
"""By how much results in bf16 of two kernels may differ, relative to the largest value."""


@cache
def kernel_name(device_index: int = 0) -> str:
    """Activates the newest kernel that is installed for a GPU and right; returns its name.

    Args:
        device_index: Number of the GPU, which must be there.
    """
    device = torch.device("cuda", device_index)
    major, _ = torch.cuda.get_device_capability(device_index)
    expected: list[torch.Tensor] = []
    for name, capabilities in NEWER_KERNELS.items():
        if major not in capabilities:
            continue
        expected = expected or _try_out(device)
        try:
            _activate(name)
        except (AttributeError, ImportError, RuntimeError, ValueError) as error:
            log.debug("%s is not there: %s", name, error)
            continue
        try:
            _compare(_try_out(device), expected)
        except Exception as error:  # whatever a package of another version raises
            log.warning("%s is installed but fails: %s: %s", name, type(error).__name__, error)
            _deactivate(name)
        else:
            return name
    return TORCH_KERNEL


def _activate(name: str) -> None:
    """Puts a newer kernel in the place of PyTorch's."""
    global _varlen
    if name == "FlashAttention 4":
        from cprec.model.kernels import flash_attention_4

        flash_attention_4.load()
        _varlen = flash_attention_4.attend_sequences
    else:
        from torch.nn import attention

        attention.activate_flash_attention_impl("FA3")


def _deactivate(name: str) -> None:
    """Takes PyTorch's kernel again."""
    global _varlen
    if name == "FlashAttention 4":
        _varlen = None
    else:
        from torch.nn import attention

        attention.restore_flash_attention_impl()


@torch.inference_mode(False)
@torch.enable_grad()
def _try_out(device: torch.device) -> list[torch.Tensor]:
    """Returns what the active kernel makes of a small row, and its gradients.

    The row has sequences of unlike lengths, one of them empty, and two query heads for a key head.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(200, heads, 64, generator=generator).to(device, torch.bfloat16).requires_grad_()
        for heads in (4, 2, 2)
    )
    bounds = torch.tensor([0, 50, 199, 200, 200], dtype=torch.int32, device=device)
    out, log_sum_exp = attend_sequences(q, k, v, bounds, bounds, 149, 149)
    out.square().sum().backward()  # type: ignore[no-untyped-call]
    found = [out.detach(), log_sum_exp.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]
    torch.cuda.synchronize(device)
    return found


def _compare(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Compares results of two kernels.

    Raises:
        ValueError: They differ.
    """
    for number, (mine, other) in enumerate(zip(found, expected, strict=True)):
        difference = ((mine.float() - other.float()).abs().max() / other.float().abs().max()).item()
        if not difference <= TOLERANCE:
            raise ValueError(
                f"result {number} differs from {TORCH_KERNEL}'s by {difference:.2g} of its largest"
            )


def attend_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float | None = None,
    causal: bool = True,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends within each sequence of a row: the i-th of the queries to the i-th of the keys.

    Args:
        query: Queries [T, H, D], on a GPU, in bf16 or fp16.
        key: Keys [T of keys, K, D]; K divides H.
        value: Values, as the keys.
        query_bounds: First query of each sequence and the end of the last one [S + 1], int32.
            Sequences may be empty.
        key_bounds: The same for the keys.
        longest_query: Queries of the longest sequence, or more.
        longest_key: Keys of the longest sequence, or more.
        scaling: Factor on the dot products; None for 1 / sqrt(D).
        causal: Whether a query sees no key behind it; the last query sees the last key.
        window: Keys that a query sees at most, itself included; None for all. Needs `causal`.

    Returns:
        The attended values [T, H, D], and the log-sum-exp of the scores [H, T], fp32, without a
        gradient.
    """
    before = -1 if window is None else window - 1
    out, log_sum_exp = _varlen_attention()(
        query,
        key,
        value,
        query_bounds,
        key_bounds,
        longest_query,
        longest_key,
        scale=scaling,
        window_size=(before, 0) if causal else (-1, -1),
    )
    return out, log_sum_exp


_varlen: Any = None


def _varlen_attention() -> Any:
    """Returns torch's varlen_attn, imported at the first call.

    The import loads torch's compiler, a second of every worker's start that CPUs can save. A
    variable of the module holds the function: torch.compile does not look into `functools.cache`.
    """
    global _varlen
    if _varlen is None:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn

        # torch 2.13 wants to be told that key heads may serve several query heads; 2.11 sees it.
        takes_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters
        arguments: dict[str, Any] = {"enable_gqa": True} if takes_gqa else {}
        _varlen = partial(varlen_attn, return_aux=AuxRequest(lse=True), **arguments)
    return _varlen

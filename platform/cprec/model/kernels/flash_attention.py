"""Variable-length flash attention: one call for all sequences of a row, on a GPU in half precision.

PyTorch ships FlashAttention 2. Where the package of a newer one is installed, PyTorch can put it in
its place: FlashAttention 3 on Hopper, FlashAttention 4 on Hopper and Blackwell. It is taken if it
is there, and `kernel_name` says which one runs.

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
NEWER_KERNELS = {"FA3": ("FlashAttention 3", (9,)), "FA4": ("FlashAttention 4", (9, 10))}
"""By PyTorch's name for a newer kernel: its name, and the compute capabilities that it is for."""


@cache
def kernel_name(device_index: int = 0) -> str:
    """Activates the newest kernel that is installed for a GPU, and returns its name.

    Args:
        device_index: Number of the GPU, which must be there.
    """
    from torch.nn import attention

    major, _ = torch.cuda.get_device_capability(device_index)
    for name, (title, capabilities) in NEWER_KERNELS.items():
        if major not in capabilities:
            continue
        try:
            attention.activate_flash_attention_impl(name)
        except (AttributeError, ImportError, RuntimeError, ValueError) as error:
            log.debug("%s is not there: %s", title, error)
            continue
        try:
            _run_once(torch.device("cuda", device_index))
        except Exception as error:  # whatever a package of another version raises
            log.warning("%s is installed but fails: %s: %s", title, type(error).__name__, error)
            attention.restore_flash_attention_impl()
        else:
            return title
    return TORCH_KERNEL


def _run_once(device: torch.device) -> None:
    """Runs the active kernel forward and backward on a sequence of eight tokens."""
    q, k, v = torch.ones(3, 8, 2, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
    bounds = torch.tensor([0, 8], dtype=torch.int32, device=device)
    out, _ = attend_sequences(q, k, v, bounds, bounds, 8, 8)
    out.sum().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)


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

"""FlashAttention 4 as an operator of PyTorch, for compiled layers, gradients and CUDA graphs.

The package flash-attn-4 compiles its kernels at the first call. PyTorch has a bridge to it, but
that of 2.11 has no backward pass within a window, as every causal call has one there, and that of
2.13 expects an earlier form of the package. So this bridge is our own.

Shapes: T tokens, H query heads, K key heads, D head size.
"""

from typing import Any

import torch

_interface: Any = None


def load() -> None:
    """Imports the package.

    Raises:
        ImportError: It is not installed, or lacks what is called here.
    """
    global _interface
    from flash_attn.cute import interface  # type: ignore[import-not-found,unused-ignore]

    if missing := {"_flash_attn_fwd", "_flash_attn_bwd"} - set(vars(interface)):
        raise ImportError(f"flash_attn.cute.interface has no {', '.join(sorted(missing))}")
    _interface = interface


def attend_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends within each sequence, with the arguments of PyTorch's `varlen_attn`.

    Args:
        query: Queries [T, H, D], on a GPU, in bf16 or fp16.
        key: Keys [T of keys, K, D].
        value: Values, as the keys.
        query_bounds: First query of each sequence and the end of the last one, int32.
        key_bounds: The same for the keys.
        longest_query: Queries of the longest sequence, or more.
        longest_key: Keys of the longest sequence, or more.
        scale: Factor on the dot products; None for 1 / sqrt(D).
        window_size: Keys that a query sees before and behind its own place; -1 for all. Behind it
            either all or none are seen.

    Returns:
        The attended values [T, H, D], and the log-sum-exp of the scores [H, T], fp32, without a
        gradient.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, log_sum_exp = _forward(
        query,
        key,
        value,
        query_bounds,
        key_bounds,
        longest_query,
        longest_key,
        scale,
        window_size[0],
        window_size[1] == 0,
    )
    return out, log_sum_exp


@torch.library.custom_op("cprec::flash_attention_4", mutates_args=())
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
    before: int,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, log_sum_exp = _shapes_of_forward(query)
    _interface._flash_attn_fwd(
        query,
        key,
        value,
        cu_seqlens_q=query_bounds,
        cu_seqlens_k=key_bounds,
        max_seqlen_q=longest_query,
        max_seqlen_k=longest_key,
        softmax_scale=scale,
        out=out,
        lse=log_sum_exp,
        return_lse=True,
        **_visible(before, causal),
    )
    return out, log_sum_exp


@torch.library.custom_op("cprec::flash_attention_4_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sum_exp: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
    before: int,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    of_query, of_key, of_value = _shapes_of_backward(query, key, value)
    _interface._flash_attn_bwd(
        query,
        key,
        value,
        out,
        grad.contiguous(),
        log_sum_exp,
        softmax_scale=scale,
        cu_seqlens_q=query_bounds,
        cu_seqlens_k=key_bounds,
        max_seqlen_q=longest_query,
        max_seqlen_k=longest_key,
        dq=of_query,
        dk=of_key,
        dv=of_value,
        **_visible(before, causal),
    )
    return of_query, of_key, of_value


def _visible(before: int, causal: bool) -> dict[str, Any]:
    """Returns what a query sees, in the package's words."""
    if before < 0:
        return {"causal": causal}
    return {"window_size_left": before, "window_size_right": 0 if causal else None}


def _shapes_of_forward(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns empty tensors for what the forward pass returns."""
    tokens, heads, _ = query.shape
    return (
        query.new_empty(query.shape),
        query.new_empty((heads, tokens), dtype=torch.float32),
    )


def _shapes_of_backward(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns empty tensors for the gradients of queries, keys and values."""
    query, key, value = (x.new_empty(x.shape) for x in inputs)
    return query, key, value


@_forward.register_fake
def _(query: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _shapes_of_forward(query)


@_backward.register_fake
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _shapes_of_backward(query, key, value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Keeps what the backward pass needs."""
    tensors, ctx.settings = inputs[:5], inputs[5:]
    query, key, value, query_bounds, key_bounds = tensors
    ctx.save_for_backward(query, key, value, *output, query_bounds, key_bounds)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    """Returns the gradients of the inputs of `_forward`."""
    return (*_backward(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 7)


_forward.register_autograd(_differentiate, setup_context=_keep)

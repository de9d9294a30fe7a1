"""Attention for packed rows, within each sample alone.

A packed row holds several samples one after the other (docs/decisions/007-packed-rows.md). Nothing
but the attention keeps them apart. transformers does so only without a cache and without a mask;
otherwise it lets samples see each other without a warning. Here the bounds of the samples are an
argument of the forward pass. Without them the same function is plain sdpa attention.

On a GPU in half precision a row takes one call of PyTorch's variable-length flash attention.
Elsewhere it takes one fused call per sample. Neither builds a mask or computes anything for pairs
of tokens of different samples.

Where samples share tokens (cprec.stream.token_sharing), a row is divided into strips. A strip also
sees some tokens of earlier strips. Each strip takes one fused call over exactly what it sees.

Shapes: B rows, T tokens of a row, S samples, K strips.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cluster.errors import RecipeError

ATTENTION_NAME = "cprec_packed"
"""Name under which this attention is registered with transformers."""


def enable_packing(model: torch.nn.Module) -> None:
    """Makes a model accept `packed_arguments` and `strip_arguments` in its forward pass.

    Without these arguments the model computes what it computed before with sdpa attention.

    Args:
        model: A transformers model, or a PEFT model around one.
    """
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, build_mask)
    # A PEFT model is no PreTrainedModel, but forwards this call to the one that it wraps.
    cast(PreTrainedModel, model).set_attn_implementation(ATTENTION_NAME)


def build_mask(
    *, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **others: Any
) -> torch.Tensor | None:
    """Builds the attention mask where padding or a cache needs one.

    Returns:
        The mask of sdpa attention, or None, which means plain causal attention. Packed rows need no
        mask, and a dense one would take T x T values.
    """
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(
        q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **others
    )


def packed_arguments(bounds: torch.Tensor, longest: int) -> dict[str, Any]:
    """Returns the forward pass's extra arguments for a row of packed samples.

    They are passed to an enabled model together with token ids and positions.

    Args:
        bounds: First token of each sample and the end of the last one [S + 1], int32, on the
            model's device.
        longest: Tokens of the longest sample.
    """
    return {"packed_bounds": bounds, "packed_longest": longest}


@dataclass(frozen=True)
class StripLayout:
    """Which tokens of a row each of its strips sees.

    Attributes:
        key_indices: Tokens that the strips see, strip after strip. For each strip: the earlier
            tokens that it sees, then its own.
        query_counts: Tokens of each strip itself [K].
        key_counts: Tokens that each strip sees [K].
        masks: Boolean mask [queries, keys] of each strip [K]; None for a strip that sees only
            itself, for which causal attention is enough.
    """

    key_indices: torch.Tensor
    query_counts: list[int]
    key_counts: list[int]
    masks: list[torch.Tensor | None]


def strip_arguments(
    bounds: Sequence[int], visible: Sequence[torch.Tensor], longest: int
) -> dict[str, Any]:
    """Returns the forward pass's extra arguments for a row whose samples share tokens.

    They are passed to an enabled model together with token ids and positions.

    Args:
        bounds: First token of each strip and the end of the last one [K + 1].
        visible: Indices of the earlier tokens that each strip sees [K], on the model's device.
        longest: Highest position in the row + 1.
    """
    device = visible[0].device
    own = [torch.arange(start, stop, device=device) for start, stop in itertools.pairwise(bounds)]
    strips = list(zip(visible, own, strict=True))
    # A strip sees all of its `earlier` tokens, and its own tokens causally.
    masks = [
        torch.ones(len(queries), len(earlier) + len(queries), dtype=torch.bool, device=device).tril(
            len(earlier)
        )
        if len(earlier)
        else None
        for earlier, queries in strips
    ]
    layout = StripLayout(
        key_indices=torch.cat([part for strip in strips for part in strip]),
        query_counts=[len(queries) for _, queries in strips],
        key_counts=[len(earlier) + len(queries) for earlier, queries in strips],
        masks=masks,
    )
    return {"packed_strips": layout, "packed_longest": longest}


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_bounds: torch.Tensor | None = None,
    packed_longest: int = 0,
    packed_strips: StripLayout | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Computes causal attention, in which the samples of a packed row do not see each other.

    Samples that share tokens are laid out in strips. A token then sees the earlier tokens of its
    own strip, and those tokens of earlier strips that `packed_strips` gives its strip.

    The signature is that of transformers' attention functions. With neither `packed_bounds` nor
    `packed_strips` this is transformers' sdpa attention.

    Args:
        module: The attention layer.
        query: Queries [B, heads, T, head size]; B is 1 for a packed row.
        key: Keys [B, key heads, T, head size].
        value: Values [B, key heads, T, head size].
        attention_mask: Mask of `build_mask`; ignored for packed rows.
        dropout: Dropout of attention weights; must be 0 for packed rows.
        scaling: Factor on the dot products; None for 1 / sqrt(head size).
        packed_bounds: Bounds of the samples, see `packed_arguments`.
        packed_longest: Tokens of the longest sample, or highest position + 1 with strips.
        packed_strips: Layout of the strips, see `strip_arguments`.
        others: Further arguments that transformers passes.

    Returns:
        The attended values [B, T, heads, head size], and None in place of attention weights.

    Raises:
        RecipeError: The row is packed, but the attention has dropout, soft capping, sinks, a
            position bias, or a sliding window shorter than `packed_longest`.
    """
    if packed_bounds is None and packed_strips is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    window = others.get("sliding_window")
    unsupported = [
        name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None
    ]
    if unsupported or dropout or (window is not None and window < packed_longest):
        what = ", ".join(unsupported) or ("dropout" if dropout else "a sliding window")
        raise RecipeError(
            f"train.pack: the attention of this model.base uses {what}, which packed rows do not "
            "have; set train.pack: false"
        )
    if packed_strips is not None:
        return _attend_by_strip(query, key, value, packed_strips, scaling), None
    assert packed_bounds is not None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _attend_with_flash(query, key, value, packed_bounds, packed_longest, scaling), None
    return _attend_by_sample(query, key, value, packed_bounds.tolist(), scaling), None


def _attend_with_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """Attends within all samples of a row in one call of variable-length flash attention."""
    # Imported late: it loads torch's compiler, a second of every worker's start that CPUs can save.
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.unsqueeze(0)  # type: ignore[union-attr]


def _attend_by_strip(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    strips: StripLayout,
    scaling: float | None,
) -> torch.Tensor:
    """Attends strip by strip, each to the tokens that it sees."""
    grouped = query.shape[1] != key.shape[1]
    queries = torch.split(query, strips.query_counts, dim=2)
    keys, values = (
        torch.split(x.index_select(2, strips.key_indices), strips.key_counts, dim=2)
        for x in (key, value)
    )
    out = [
        F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        for q, k, v, mask in zip(queries, keys, values, strips.masks, strict=True)
    ]
    return torch.cat(out, dim=2).transpose(1, 2)


def _attend_by_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: list[int],
    scaling: float | None,
) -> torch.Tensor:
    """Attends causally, sample by sample."""
    grouped = query.shape[1] != key.shape[1]
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    parts = (torch.split(x, sizes, dim=2) for x in (query, key, value))
    out = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(out, dim=2).transpose(1, 2)

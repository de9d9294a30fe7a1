"""Attention over a packed row, within each sample alone. Nothing else keeps the samples of a row apart.

transformers keeps packed samples apart only as long as there is neither cache nor mask, and else lets them see each other without a word. Here the
bounds of the samples are an argument of the forward pass, and without them the same function is plain attention.

On GPUs in half precision it is one call of PyTorch's variable-length flash attention, elsewhere one fused call per sample: no mask, and no work on
pairs of tokens of different samples.

Where samples share tokens (cprec.stream.token_sharing) a row is cut into strips, each of which also sees tokens of earlier ones: one fused call per strip,
over what it sees and nothing else.
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


def enable_packing(model: torch.nn.Module) -> None:
    """Let a model take the keyword arguments of `bounds_of`. Without them it does what it did before with sdpa attention."""
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, build_mask)
    cast(PreTrainedModel, model).set_attn_implementation(
        ATTENTION_NAME
    )  # or a PEFT model, which passes the call on


def build_mask(
    *, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **others: Any
) -> torch.Tensor | None:
    """None, which means causal, unless padding or a cache asks for more. A packed row's bounds need no mask, and a dense one would be of T x T."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(
        q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **others
    )


def packed_arguments(bounds: torch.Tensor, longest: int) -> dict[str, Any]:
    """What the forward pass of an enabled model takes beside ids and positions.

    bounds: [S + 1] int32, on the model's device; longest: tokens of the longest sample.
    """
    return {"packed_bounds": bounds, "packed_longest": longest}


@dataclass(frozen=True)
class StripLayout:
    """What the strips of a row see. places: all their keys, strip after strip, those before a strip's own first; queries, keys: how many of each;
    masks: [queries, keys] of each strip, None where it sees its own alone."""

    key_indices: torch.Tensor
    query_counts: list[int]
    key_counts: list[int]
    masks: list[torch.Tensor | None]


def strip_arguments(
    bounds: Sequence[int], visible: Sequence[torch.Tensor], longest: int
) -> dict[str, Any]:
    """What the forward pass of an enabled model takes beside ids and positions where the tokens of a row are seen by several samples.

    bounds: [K + 1], of the strips; seen: [n] of each, the places that it sees before its own, on the model's device; reach: highest position + 1.
    """
    device = visible[0].device
    own = [torch.arange(start, stop, device=device) for start, stop in itertools.pairwise(bounds)]
    pairs = list(zip(visible, own, strict=True))
    places = torch.cat([part for pair in pairs for part in pair])
    masks = [
        torch.ones(len(q), len(k) + len(q), dtype=torch.bool, device=device).tril(len(k))
        if len(k)
        else None
        for k, q in pairs
    ]
    queries, keys = [len(q) for _, q in pairs], [len(k) + len(q) for k, q in pairs]
    return {"packed_strips": StripLayout(places, queries, keys, masks), "packed_longest": longest}


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
    """Causal attention of query [B, heads, T, size] to key and value [B, key heads, T, size]; returns [B, T, heads, size].

    Raises RecipeError for a model whose attention is more than scaled dot products over all that came before.
    """
    if packed_bounds is None and packed_strips is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    window = others.get("sliding_window")
    special = [
        name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None
    ]
    if special or dropout or (window is not None and window < packed_longest):
        what = ", ".join(special) or ("dropout" if dropout else "a sliding window")
        raise RecipeError(
            f"train.pack: the attention of this model.base uses {what}, which packed rows do not have; set train.pack: false"
        )
    if packed_strips is not None:
        return _attend_by_strip(query, key, value, packed_strips, scaling), None
    assert packed_bounds is not None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import (
            varlen_attn,  # brings torch's compiler: a second of every worker's start, where no GPU needs it
        )

        q, k, v = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        longest = packed_longest
        out = varlen_attn(
            q,
            k,
            v,
            packed_bounds,
            packed_bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=grouped,
        )
        return out.unsqueeze(0), None  # type: ignore[union-attr]
    return _attend_by_sample(query, key, value, packed_bounds.tolist(), scaling), None


def _attend_by_strip(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    strips: StripLayout,
    scaling: float | None,
) -> torch.Tensor:
    """Strip by strip."""
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
    """Sample by sample."""
    grouped = query.shape[1] != key.shape[1]
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    parts = (torch.split(x, sizes, dim=2) for x in (query, key, value))
    out = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(out, dim=2).transpose(1, 2)

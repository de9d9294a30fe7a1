"""Attention for packed rows, within each sample alone.

A packed row holds several samples one after the other (docs/decisions/007-packed-rows.md). Nothing
but the attention keeps them apart. transformers does so only without a cache and without a mask;
otherwise it lets samples see each other without a warning. Here the bounds of the samples are an
argument of the forward pass. Without them the same function is plain sdpa attention.

On a GPU in half precision a row takes one call of PyTorch's variable-length flash attention.
Elsewhere it takes one fused call per sample. Neither builds a mask or computes anything for pairs
of tokens of different samples.

Where samples share tokens (cprec.stream.token_sharing), a row is divided into strips. A strip also
sees some tokens of earlier strips. Each strip takes one fused call over exactly what it sees. Where
candidates are scored, prompts have branches (cprec.model.layouts).

Caps on scores (Gemma 2) and sinks (gpt-oss), which no fused call knows, are computed sample by
sample in plain operations, as transformers' own eager attention does for whole rows.

Shapes: B rows, T tokens of a row, S samples, K strips.
"""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cluster.errors import RecipeError
from cprec.model.kernels import flash_attention
from cprec.model.layouts.branches import BranchLayout, attend_branches
from cprec.model.layouts.strips import (
    StripLayout,
    causal_mask,
    strips_of_tokens,
    window_mask,
)

ATTENTION_NAME = "cprec_packed"
"""Name under which this attention is registered with transformers."""
MASKLESS_NAME = "cprec_maskless"
"""Name of the same attention without a mask function: transformers then builds no mask at all."""
_maskless_lock = threading.RLock()


def enable_packing(model: torch.nn.Module) -> str:
    """Makes a model accept `packed_arguments` and `strip_arguments` in its forward pass.

    Without these arguments the model computes what it computed before. Models whose layers do not
    pass the arguments on compute as if there were none, without a word: what is enabled here is
    checked in `cprec.train.pack_check`.

    Args:
        model: A transformers model, or a PEFT model around one.

    Returns:
        Name of the attention that the model had, for `set_attention`.
    """
    _register(ATTENTION_NAME)
    AttentionMaskInterface.register(ATTENTION_NAME, build_mask)
    before = str(cast(PreTrainedModel, model).config._attn_implementation)
    set_attention(model, ATTENTION_NAME)
    return before


def set_attention(model: torch.nn.Module, name: str) -> None:
    """Sets the attention of a model by its name in transformers."""
    # A PEFT model is no PreTrainedModel, but forwards this call to the one that it wraps.
    cast(PreTrainedModel, model).set_attn_implementation(name)


def _register(name: str) -> None:
    """Registers this attention with transformers, and activates the GPU's kernel."""
    AttentionInterface.register(name, packed_attention)
    if torch.cuda.is_available():
        flash_attention.kernel_name(torch.cuda.current_device())


@contextmanager
def maskless(model: torch.nn.Module) -> Iterator[None]:
    """Makes a model accept `branch_arguments`, and restores its attention afterwards.

    Rows are not padded here, and no mask is built, whatever windows the layers have. One thread at
    a time: another that restored a shared model's attention meanwhile would let branches see each
    other without a word.
    """
    _register(MASKLESS_NAME)
    with _maskless_lock:
        before = str(cast(PreTrainedModel, model).config._attn_implementation)
        set_attention(model, MASKLESS_NAME)
        try:
            yield
        finally:
            set_attention(model, before)


def build_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **others: Any,
) -> torch.Tensor | None:
    """Builds the attention mask where padding, a cache or a window needs one.

    Returns:
        The mask of sdpa attention, or None, which means plain causal attention. Packed rows need no
        mask, and a dense one would take T x T values.
    """
    if attention_mask is None and q_length == kv_length <= (local_size or kv_length):
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        **others,
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
    packed_branches: BranchLayout | None = None,
    packed_queries: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Computes causal attention, in which the samples of a packed row do not see each other.

    Samples that share tokens are laid out in strips. A token then sees the earlier tokens of its
    own strip, and those tokens of earlier strips that `packed_strips` gives its strip.

    The signature is that of transformers' attention functions. With none of the layouts this is
    transformers' sdpa attention.

    Args:
        module: The attention layer.
        query: Queries [B, heads, T, head size]; B is 1 for a packed row.
        key: Keys [B, key heads, T, head size].
        value: Values [B, key heads, T, head size].
        attention_mask: Mask of `build_mask`; ignored for packed rows.
        dropout: Dropout of attention weights.
        scaling: Factor on the dot products; None for 1 / sqrt(head size).
        packed_bounds: Bounds of the samples, see `packed_arguments`.
        packed_longest: Tokens of the longest sample, or highest position + 1 with strips.
        packed_strips: Layout of the strips, see `cprec.model.layouts.strips`.
        packed_branches: Layout of prompts and branches, see `cprec.model.layouts.branches`.
        packed_queries: Tokens whose attended values are read [N], which leaves others free to be
            anything; None for all. Only sample by sample is there anything to gain.
        others: Further arguments that transformers passes.

    Returns:
        The attended values [B, T, heads, head size], and None in place of attention weights.

    Raises:
        RecipeError: The row is packed, but the attention has a position bias; or there are strips,
            and a sliding window shorter than `packed_longest`.
    """
    terms = ScoreTerms(scaling, dropout, others.get("softcap"), others.get("s_aux"))
    if packed_bounds is None and packed_strips is None and packed_branches is None:
        if terms.fused:
            return sdpa_attention_forward(
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                **others,
            )
        return _attend_unpacked(query, key, value, attention_mask, terms), None
    window = others.get("sliding_window")
    if others.get("position_bias") is not None:
        raise RecipeError(
            "train.pack: the attention of this model.base has a position bias, which packed rows "
            "do not have; set train.pack: false"
        )
    if packed_strips is not None:
        if window is not None and window < packed_longest:
            raise RecipeError(
                f"train.targets_per_pass, train.shared_candidates: the attention of this "
                f"model.base sees {window} tokens, fewer than the {packed_longest} of a sample; "
                "set them to 1 and 0"
            )
        return _attend_by_strip(query, key, value, packed_strips, terms), None
    by_flash = (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and terms.fused
        and not dropout
    )
    if packed_branches is not None:
        if window is not None and window >= packed_branches.longest:
            window = None
        # A window of a branch begins inside its prompt, which no flash call knows.
        if by_flash and window is None:
            return attend_branches(query, key, value, packed_branches, scaling), None
        return _attend_by_strip(query, key, value, packed_branches.strips(window), terms), None
    assert packed_bounds is not None
    if by_flash:
        return (
            _attend_with_flash(query, key, value, packed_bounds, packed_longest, scaling, window),
            None,
        )
    return _attend_by_sample(query, key, value, packed_bounds, packed_queries, terms, window), None


@dataclass(frozen=True)
class ScoreTerms:
    """How the scores of an attention layer become weights.

    Attributes:
        scaling: Factor on the dot products; None for 1 / sqrt(head size).
        dropout: Dropout of the weights.
        softcap: Bound that scores approach; None for no bound.
        sinks: A score of each head [heads] that takes weight and gives nothing; None for none.
    """

    scaling: float | None
    dropout: float
    softcap: float | None
    sinks: torch.Tensor | None

    @property
    def fused(self) -> bool:
        """Whether PyTorch's fused attention computes it."""
        return self.softcap is None and self.sinks is None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    terms: ScoreTerms,
) -> torch.Tensor:
    """Attends to the keys that a mask shows each query.

    Args:
        query: Queries [B, heads, queries, head size].
        key: Keys [B, key heads, keys, head size].
        value: Values, as the keys.
        mask: What each query sees, boolean or additive, [queries, keys] or with leading B and 1;
            None: queries and keys are the same tokens, and each sees itself and those before it.
        terms: How scores become weights.

    Returns:
        The attended values [B, heads, queries, head size].
    """
    grouped = query.shape[1] != key.shape[1]
    if terms.fused:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=terms.dropout,
            is_causal=mask is None,
            scale=terms.scaling,
            enable_gqa=grouped,
        )
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if terms.scaling is None else terms.scaling
    scores = (query @ key.transpose(2, 3)).float() * scaling
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    if mask is None:
        mask = causal_mask(query.shape[2], None, query.device)
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    if terms.sinks is not None:
        sinks = terms.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    return F.dropout(weights, terms.dropout, training=terms.dropout > 0) @ value


def _to_layer_output(attended: torch.Tensor) -> torch.Tensor:
    """Returns [B, heads, T, head size] as layers take it: [B, T, heads, head size], contiguous.

    Some layers look at it with `view`, which takes no other layout.
    """
    return attended.transpose(1, 2).contiguous()


def _attend_unpacked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    terms: ScoreTerms,
) -> torch.Tensor:
    """Attends within whole rows."""
    if mask is None and query.shape[2] != key.shape[2]:  # the next token, behind a cache
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(
            key.shape[2] - query.shape[2]
        )
    return _to_layer_output(_attend(query, key, value, mask, terms))


def _attend_with_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attends within all samples of a row in one call of variable-length flash attention."""
    q, k, v = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
    out, _ = flash_attention.attend_sequences(
        q, k, v, bounds, bounds, longest, longest, scaling, window=window
    )
    return out.unsqueeze(0).contiguous()


def _attend_by_strip(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    strips: StripLayout,
    terms: ScoreTerms,
) -> torch.Tensor:
    """Attends strip by strip, each to the tokens that it sees."""
    queries = torch.split(query, strips.query_counts, dim=2)
    keys, values = (
        torch.split(x.index_select(2, strips.key_indices), strips.key_counts, dim=2)
        for x in (key, value)
    )
    out = [
        _attend(q, k, v, mask, terms)
        for q, k, v, mask in zip(queries, keys, values, strips.masks, strict=True)
    ]
    return _to_layer_output(torch.cat(out, dim=2))


# It would be compiled again for every number of samples.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_by_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed_bounds: torch.Tensor,
    wanted: torch.Tensor | None,
    terms: ScoreTerms,
    window: int | None,
) -> torch.Tensor:
    """Attends causally, sample by sample, to no more than `window` tokens.

    For `wanted` tokens only, if they are fewer than half; the values of others are then 0. What
    they see is a mask, with which fused attention computes every pair, not half of them.
    """
    bounds = packed_bounds.tolist()
    if wanted is not None and 2 * len(wanted) < query.shape[2]:
        tokens = torch.unique(wanted)  # in their order
        strips = strips_of_tokens(tokens, bounds, window)
        attended = _attend_by_strip(query.index_select(2, tokens), key, value, strips, terms)
        whole = attended.new_zeros(1, query.shape[2], *attended.shape[2:])
        return whole.index_copy(1, tokens, attended)
    sizes = [stop - start for start, stop in itertools.pairwise(bounds) if stop > start]
    parts = (torch.split(x, sizes, dim=2) for x in (query, key, value))
    out = []
    for q, k, v in zip(*parts, strict=True):
        out.append(_attend(q, k, v, window_mask(q.shape[2], window, q.device), terms))
    return _to_layer_output(torch.cat(out, dim=2))

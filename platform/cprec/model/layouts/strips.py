"""Rows that are divided into strips, each of which also sees some tokens of earlier strips.

Shapes: T tokens of a row, K strips.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


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


def strips_of_tokens(
    tokens: torch.Tensor, bounds: Sequence[int], window: int | None
) -> StripLayout:
    """Lays out some tokens of packed samples, each of which sees the earlier ones of its sample.

    Args:
        tokens: The tokens, in ascending order [N].
        bounds: First token of each sample and the end of the last one [S + 1].
        window: Tokens that each of them sees at most; None for all.
    """
    device = tokens.device
    stops = torch.searchsorted(tokens, torch.tensor(bounds, device=device)).tolist()
    samples = [
        (start, stop, tokens[first:last] - start)
        for (start, stop), (first, last) in zip(
            itertools.pairwise(bounds), itertools.pairwise(stops), strict=True
        )
        if first < last
    ]
    return StripLayout(
        key_indices=torch.cat([torch.arange(a, b, device=device) for a, b, _ in samples]),
        query_counts=[len(own) for _, _, own in samples],
        key_counts=[stop - start for start, stop, _ in samples],
        masks=[causal_mask(stop - start, window, device)[own] for start, stop, own in samples],
    )


def window_mask(tokens: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Returns what each token of a sequence sees; None where plain causal attention is enough."""
    return causal_mask(tokens, window, device) if window and window < tokens else None


def causal_mask(tokens: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Returns which tokens each token of a sequence sees: those before it, within the window."""
    ones = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return ones if window is None else ones.triu(1 - window)

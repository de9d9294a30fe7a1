"""SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018): causal self-attention over a user's items.

Embeddings of items and of places, `blocks` of attention and a point-wise feed-forward layer, each with layer normalisation before it, dropout after
it and a residual around it (Sec. III-B); the item embeddings also rank (shared, Sec. III-D); at every place one negative, binary cross-entropy
(Sec. III-E), Adam.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cprec.baselines.network import Recommender

REDRAWS = 8
"""Draws for a negative that the user's sequence does not hold. In a domain of at least twice as many items one in 2^8 stays, at the worst."""


class SASRec(Recommender):
    """One attention head, as in the paper."""

    def __init__(self, items: int, length: int, size: int, blocks: int, dropout: float) -> None:
        super().__init__(items, length)
        self.item = nn.Embedding(items + 1, size, padding_idx=0)
        self.place = nn.Embedding(length, size)
        # Glorot's, which is what the authors' code starts from; at a larger start the model ranks worse in the end (docs/benchmarks.md).
        nn.init.xavier_uniform_(self.item.weight)
        nn.init.xavier_uniform_(self.place.weight)
        with torch.no_grad():
            self.item.weight[0].zero_()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(size, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)

    def states(self, sequences: torch.Tensor) -> torch.Tensor:
        """[B, L] item numbers to [B, L, H]."""
        there = (sequences > 0).unsqueeze(-1)
        x = self.item(sequences) * self.item.embedding_dim**0.5 + self.place.weight
        x = self.dropout(x) * there
        length = sequences.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & (sequences > 0)[:, None, :]
        # A padded place sees itself: one that saw nothing would be NaN.
        seen |= torch.eye(length, dtype=torch.bool)
        for block in self.blocks:
            x = block(x, seen) * there
        return self.norm(x)  # type: ignore[no-any-return]

    def worth(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Dot products of states [..., H] with the embeddings of items [..., C]."""
        return (self.item(items) @ states.unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of what followed and of one item that is not in the sequence, over all places (Eq. 7)."""
        negatives = torch.randint(1, self.items + 1, targets.shape)
        for _ in range(REDRAWS):
            known = (negatives[:, :, None] == torch.cat([inputs, targets], dim=1)[:, None, :]).any(
                -1
            )
            negatives = torch.where(
                known, torch.randint(1, self.items + 1, targets.shape), negatives
            )
        scores = self.worth(self.states(inputs), torch.stack([targets, negatives], dim=-1))
        there = targets > 0
        return F.softplus(-scores[..., 0])[there].mean() + F.softplus(scores[..., 1])[there].mean()

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Adam with beta2 = 0.98, as the authors' code has it."""
        return torch.optim.Adam(self.parameters(), lr=rate, betas=(0.9, 0.98))


class _Block(nn.Module):
    """Self-attention and a feed-forward layer of the same width."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.before_attention, self.before_feed = nn.LayerNorm(size), nn.LayerNorm(size)
        self.feed = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(size, size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """x: [B, L, H]; seen: [B, L, L] bool."""
        normal = self.before_attention(x)
        x = x + self.dropout(
            F.scaled_dot_product_attention(
                self.query(normal), self.key(normal), self.value(normal), attn_mask=seen
            )
        )
        return x + self.dropout(self.feed(self.before_feed(x)))  # type: ignore[no-any-return]

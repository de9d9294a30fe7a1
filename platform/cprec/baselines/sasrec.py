"""SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018): causal self-attention over a user's items.

Embeddings of items and of places, `blocks` of attention and a point-wise feed-forward layer, each with layer normalisation before it, dropout after
it and a residual around it (Sec. III-B); the item embeddings also rank (shared, Sec. III-D); at every place one negative, binary cross-entropy
(Sec. III-E), Adam.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cprec.baselines.recommender import Recommender

NEGATIVE_REDRAWS = 8
"""Draws for a negative that the user's sequence does not hold. In a domain of at least twice as many items one in 2^8 stays, at the worst."""


class SASRec(Recommender):
    """One attention head, as in the paper."""

    def __init__(
        self, item_count: int, max_length: int, hidden_size: int, blocks: int, dropout: float
    ) -> None:
        super().__init__(item_count, max_length)
        self.item = nn.Embedding(item_count + 1, hidden_size, padding_idx=0)
        self.place = nn.Embedding(max_length, hidden_size)
        # Glorot's, which is what the authors' code starts from; at a larger start the model ranks worse in the end (docs/benchmarks.md).
        nn.init.xavier_uniform_(self.item.weight)
        nn.init.xavier_uniform_(self.place.weight)
        with torch.no_grad():
            self.item.weight[0].zero_()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_AttentionBlock(hidden_size, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden_size)

    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
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

    def score_items(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Dot products of states [..., H] with the embeddings of items [..., C]."""
        return (self.item(items) @ states.unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of what followed and of one item that is not in the sequence, over all places (Eq. 7)."""
        negatives = torch.randint(1, self.item_count + 1, targets.shape)
        for _ in range(NEGATIVE_REDRAWS):
            known = (negatives[:, :, None] == torch.cat([inputs, targets], dim=1)[:, None, :]).any(
                -1
            )
            negatives = torch.where(
                known, torch.randint(1, self.item_count + 1, targets.shape), negatives
            )
        scores = self.score_items(
            self.encode_sequences(inputs), torch.stack([targets, negatives], dim=-1)
        )
        there = targets > 0
        return F.softplus(-scores[..., 0])[there].mean() + F.softplus(scores[..., 1])[there].mean()

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Adam with beta2 = 0.98, as the authors' code has it."""
        return torch.optim.Adam(self.parameters(), lr=lr, betas=(0.9, 0.98))


class _AttentionBlock(nn.Module):
    """Self-attention and a feed-forward layer of the same width."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3)
        )
        self.before_attention, self.before_feed = (
            nn.LayerNorm(hidden_size),
            nn.LayerNorm(hidden_size),
        )
        self.feed = nn.Sequential(
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """x: [B, L, H]; seen: [B, L, L] bool."""
        normal = self.before_attention(x)
        x = x + self.dropout(
            F.scaled_dot_product_attention(
                self.query(normal), self.key(normal), self.value(normal), attn_mask=attention_mask
            )
        )
        return x + self.dropout(self.feed(self.before_feed(x)))  # type: ignore[no-any-return]

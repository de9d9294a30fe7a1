"""SASRec: causal self-attention over a user's items.

Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018. Items and places are embedded.
Then follow blocks of attention and a point-wise feed-forward layer, each with layer normalisation
before it, dropout after it and a residual around it (Sec. III-B). The item embeddings also rank
(shared, Sec. III-D). The loss is binary cross-entropy with one negative at every place
(Sec. III-E), and the optimizer is Adam.

Shapes: see cprec.baselines.recommender.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cprec.baselines.recommender import Recommender

NEGATIVE_REDRAWS = 8
"""Times that a negative is drawn again if it is in the user's sequence.

In a domain of at least twice as many items as the sequence, at most one in 2^8 stays.
"""


class SASRec(Recommender):
    """SASRec with one attention head, as in the paper."""

    def __init__(
        self,
        num_items: int,
        max_length: int,
        hidden_size: int,
        blocks: int,
        dropout: float,
        items: nn.Module | None = None,
    ) -> None:
        """Builds a network with fresh weights from torch's random generator.

        Args:
            num_items: Items of the domain.
            max_length: Places of a sequence.
            hidden_size: Size of embeddings and states.
            blocks: Number of attention blocks.
            dropout: Dropout while training.
            items: Embeds item numbers [...] as [..., H]; None: a table with a row for each item.
        """
        super().__init__(num_items, max_length)
        if items is None:
            items = nn.Embedding(num_items + 1, hidden_size, padding_idx=0)
        self.item = items
        self.place = nn.Embedding(max_length, hidden_size)
        self.scale = 1.0
        if isinstance(self.item, nn.Embedding):
            # Glorot's distribution, as in the authors' code. From larger weights the model ends up
            # ranking worse (docs/benchmarks.md).
            nn.init.xavier_uniform_(self.item.weight)
            with torch.no_grad():
                self.item.weight[0].zero_()
            self.scale = hidden_size**0.5
        nn.init.xavier_uniform_(self.place.weight)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(AttentionBlock(hidden_size, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden_size)

    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """Encodes item numbers [B, L] as states [B, L, H]."""
        is_item = (sequences > 0).unsqueeze(-1)
        x = self.dropout(self.item(sequences) * self.scale + self.place.weight) * is_item
        visible = causal_mask(sequences)
        for block in self.blocks:
            x = block(x, visible) * is_item
        return self.norm(x)  # type: ignore[no-any-return]

    def score_items(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores items [..., C] in states [..., H] by the dot product with their embeddings."""
        return (self.item(items) @ states.unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]

    def score_catalogue(self, states: torch.Tensor) -> torch.Tensor:
        """Scores every item in states [B, H]."""
        return states @ self.embed_catalogue().T

    def embed_catalogue(self) -> torch.Tensor:
        """Embeds every item [items, H], in the order of the item numbers."""
        return self.item(torch.arange(1, self.num_items + 1))  # type: ignore[no-any-return]

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes binary cross-entropy of the target and one negative at every place (Eq. 7).

        Args:
            inputs: Item numbers [B, L].
            targets: Item that follows each place [B, L]; 0 where none does.
        """
        scores = self.score_targets(inputs, targets)
        return F.softplus(-scores[:, 0]).mean() + F.softplus(scores[:, 1]).mean()

    def score_targets(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scores each target, and a negative that is drawn for it.

        Args:
            inputs: Item numbers [B, L].
            targets: Item that follows each place [B, L]; 0 where none does.

        Returns:
            Scores of the target and of the negative [targets, 2].
        """
        # Negatives are items outside the sequence; those inside it are drawn again.
        negatives = torch.randint(1, self.num_items + 1, targets.shape)
        for _ in range(NEGATIVE_REDRAWS):
            in_sequence = (
                negatives[:, :, None] == torch.cat([inputs, targets], dim=1)[:, None, :]
            ).any(-1)
            negatives = torch.where(
                in_sequence, torch.randint(1, self.num_items + 1, targets.shape), negatives
            )
        pairs = torch.stack([targets, negatives], dim=-1)
        return self.score_items(self.encode_sequences(inputs), pairs)[targets > 0]

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Builds Adam with beta2 = 0.98, as in the authors' code."""
        return torch.optim.Adam(self.parameters(), lr=lr, betas=(0.9, 0.98))


def causal_mask(sequences: torch.Tensor) -> torch.Tensor:
    """Returns which places each place sees [B, L, L]: itself, and the items before it.

    Args:
        sequences: Item numbers [B, L].
    """
    length = sequences.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & (sequences > 0)[:, None, :]
    # A padded place sees itself: if it saw nothing, it would be NaN.
    return visible | torch.eye(length, dtype=torch.bool)


class AttentionBlock(nn.Module):
    """Self-attention followed by a feed-forward layer of the same width."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3)
        )
        self.before_attention = nn.LayerNorm(hidden_size)
        self.before_feed = nn.LayerNorm(hidden_size)
        self.feed = nn.Sequential(
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Transforms states.

        Args:
            x: States [B, L, H].
            attention_mask: Places that each place sees [B, L, L], bool.

        Returns:
            States [B, L, H].
        """
        normal = self.before_attention(x)
        x = x + self.dropout(
            F.scaled_dot_product_attention(
                self.query(normal), self.key(normal), self.value(normal), attn_mask=attention_mask
            )
        )
        return x + self.dropout(self.feed(self.before_feed(x)))  # type: ignore[no-any-return]

"""GRU4Rec (Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", 2016): a gated recurrent network over a user's items.

One layer that takes items one-hot (Sec. 3.1), a score for every item through tanh, and the TOP1 loss against the items that come next in the
other sequences of the mini-batch (Sec. 3.2.2, 3.2.3: popular items are drawn more often), Adagrad. Whole sequences lie side by side and gradients
flow through all their places; the authors' code carries states over between mini-batches instead, because its sequences have no bound.
"""

import torch
from torch import nn

from cprec.baselines.recommender import Recommender


class GRU4Rec(Recommender):
    """One recurrent layer."""

    def __init__(self, item_count: int, max_length: int, hidden_size: int, dropout: float) -> None:
        super().__init__(item_count, max_length)
        # One-hot input times the input weights of the three gates is a row of a table.
        self.gates = nn.Embedding(item_count + 1, 3 * hidden_size, padding_idx=0)
        self.recurrent = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Embedding(item_count + 1, hidden_size, padding_idx=0)
        self.bias = nn.Embedding(item_count + 1, 1, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        # U(-b, b) with b = sqrt(6 / (rows + columns)), as the authors start.
        for weight in (self.gates.weight, self.recurrent.weight, self.out.weight):
            reach = (6 / sum(weight.shape)) ** 0.5
            nn.init.uniform_(weight, -reach, reach)
        nn.init.zeros_(self.bias.weight)

    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """[B, L] item numbers to [B, L, H]."""
        state = torch.zeros(len(sequences), self.out.embedding_dim)
        states = []
        for place in range(sequences.shape[1]):
            given = self.gates(sequences[:, place]).chunk(3, dim=-1)
            held = self.recurrent(state).chunk(3, dim=-1)
            reset, update = torch.sigmoid(given[0] + held[0]), torch.sigmoid(given[1] + held[1])
            fresh = torch.tanh(given[2] + reset * held[2])
            state = torch.where(
                sequences[:, place, None] > 0, (1 - update) * state + update * fresh, state
            )
            states.append(state)
        return self.dropout(torch.stack(states, dim=1))  # type: ignore[no-any-return]

    def score_items(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """tanh of a linear score."""
        return torch.tanh((self.out(items) @ states.unsqueeze(-1) + self.bias(items)).squeeze(-1))

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """TOP1: mean over the negatives j of sigmoid(r_j - r_i) + sigmoid(r_j^2), averaged over the targets i."""
        states = self.encode_sequences(inputs)
        losses = []
        for place in range(inputs.shape[1]):
            there = targets[:, place] > 0
            following = targets[there, place]
            if len(following) < 2:
                continue
            # `worth` of every state with every item, without a copy of the items for each state.
            scores = torch.tanh(
                states[there, place] @ self.out(following).T + self.bias(following).T
            )
            own = scores.diagonal()[:, None]
            others = following[:, None] != following
            terms = torch.where(others, torch.sigmoid(scores - own) + torch.sigmoid(scores**2), 0)
            losses.append(terms.sum(1) / others.sum(1).clamp(min=1))
        return torch.cat(losses).mean() if losses else states.sum() * 0

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Adagrad."""
        return torch.optim.Adagrad(self.parameters(), lr=lr)

"""GRU4Rec: a gated recurrent network over a user's items.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", 2016. The network has
one layer that takes items one-hot (Sec. 3.1) and gives every item a score through tanh. It is
trained with Adagrad and the TOP1 loss. Negatives are the items that come next in the other
sequences of the mini-batch, so popular items are drawn more often (Sec. 3.2.2, 3.2.3).

Whole sequences are trained side by side, and gradients flow through all their places. The authors'
code carries states from one mini-batch to the next instead, because its sequences have no bound.

Shapes: see cprec.baselines.recommender.
"""

import torch
from torch import nn

from cprec.baselines.recommender import Recommender


class GRU4Rec(Recommender):
    """GRU4Rec with one recurrent layer."""

    def __init__(self, num_items: int, max_length: int, hidden_size: int, dropout: float) -> None:
        """Builds a network with fresh weights from torch's random generator.

        Args:
            num_items: Items of the domain.
            max_length: Places of a sequence.
            hidden_size: Size of a state.
            dropout: Dropout of states while training.
        """
        super().__init__(num_items, max_length)
        # A one-hot item times the input weights of the three gates is a row of an embedding table.
        self.gates = nn.Embedding(num_items + 1, 3 * hidden_size, padding_idx=0)
        self.recurrent = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Embedding(num_items + 1, hidden_size, padding_idx=0)
        self.bias = nn.Embedding(num_items + 1, 1, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        # U(-b, b) with b = sqrt(6 / (rows + columns)), as in the authors' code.
        for weight in (self.gates.weight, self.recurrent.weight, self.out.weight):
            bound = (6 / sum(weight.shape)) ** 0.5
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.bias.weight)

    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """Encodes item numbers [B, L] as states [B, L, H]."""
        state = torch.zeros(len(sequences), self.out.embedding_dim)
        states = []
        for place in range(sequences.shape[1]):
            from_item = self.gates(sequences[:, place]).chunk(3, dim=-1)
            from_state = self.recurrent(state).chunk(3, dim=-1)
            reset = torch.sigmoid(from_item[0] + from_state[0])
            update = torch.sigmoid(from_item[1] + from_state[1])
            proposal = torch.tanh(from_item[2] + reset * from_state[2])
            # Padding leaves the state as it is.
            state = torch.where(
                sequences[:, place, None] > 0, (1 - update) * state + update * proposal, state
            )
            states.append(state)
        return self.dropout(torch.stack(states, dim=1))  # type: ignore[no-any-return]

    def score_items(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores items [..., C] in states [..., H] by tanh of a linear function of the state."""
        return torch.tanh((self.out(items) @ states.unsqueeze(-1) + self.bias(items)).squeeze(-1))

    def score_catalogue(self, states: torch.Tensor) -> torch.Tensor:
        """Scores every item in states [B, H]."""
        return torch.tanh(states @ self.out.weight[1:].T + self.bias.weight[1:].T)

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes the TOP1 loss.

        With scores r, it is sigmoid(r_j - r_i) + sigmoid(r_j^2), averaged over the negatives j of
        each target i, then over the targets.

        Args:
            inputs: Item numbers [B, L].
            targets: Item that follows each place [B, L]; 0 where none does.
        """
        states = self.encode_sequences(inputs)
        losses = []
        for place in range(inputs.shape[1]):
            has_target = targets[:, place] > 0
            next_items = targets[has_target, place]
            if len(next_items) < 2:
                continue
            # Every state's score of every next item [n, n]: `score_items` would copy the items'
            # embeddings for each state.
            scores = torch.tanh(
                states[has_target, place] @ self.out(next_items).T + self.bias(next_items).T
            )
            target_scores = scores.diagonal()[:, None]
            is_negative = next_items[:, None] != next_items
            terms = torch.where(
                is_negative, torch.sigmoid(scores - target_scores) + torch.sigmoid(scores**2), 0
            )
            losses.append(terms.sum(1) / is_negative.sum(1).clamp(min=1))
        # A mini-batch without negatives has loss 0, connected to the weights.
        return torch.cat(losses).mean() if losses else states.sum() * 0

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Builds Adagrad."""
        return torch.optim.Adagrad(self.parameters(), lr=lr)

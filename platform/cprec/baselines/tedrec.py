"""TedRec: numbers and texts of a sequence's items, mixed in the frequency domain.

Xu et al., "Sequence-level Semantic Representation Fusion for Recommender Systems", 2024. Text
vectors pass a mixture of experts, each of which whitens them by parameters. Sequences of
text vectors and of item embeddings are transformed by FFT along the places and multiplied, by which
each filters the other; beside it, learned weights filter the item embeddings alone. Both results
are gated, and added. Self-attention follows, as in SASRec. Items are ranked by the cosine
of their embeddings and the state, and the loss is cross-entropy over all items.

A filter in the frequency domain mixes all places, later ones too. So a state is computed from the
sequence up to its place, and each target is a training row of its own.

Shapes: see cprec.baselines.recommender. T is the size of a text vector, E the number of experts.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cprec.baselines.morec import pad_text
from cprec.baselines.recommender import Recommender
from cprec.baselines.sasrec import AttentionBlock, causal_mask

WEIGHT_SPREAD = 0.02
"""Standard deviation of fresh weights, as in the authors' code."""
MIN_NOISE = 1e-2
"""Smallest standard deviation of the noise of gates while training, as in the authors' code."""


class TedRec(Recommender):
    """SASRec over sequences of numbers and texts."""

    def __init__(
        self,
        text: torch.Tensor,
        max_length: int,
        hidden_size: int,
        blocks: int,
        dropout: float,
        *,
        experts: int,
        text_dropout: float,
        temperature: float,
    ) -> None:
        """Builds a network with fresh weights from torch's random generator.

        Args:
            text: Text vector of each item, in the order of the item numbers [items, T].
            max_length: Places of a sequence.
            hidden_size: Size of embeddings and states.
            blocks: Number of attention blocks.
            dropout: Dropout while training.
            experts: Number of experts for text vectors.
            text_dropout: Dropout of text vectors while training.
            temperature: Divides the cosines in the loss.
        """
        super().__init__(len(text), max_length)
        self.text: torch.Tensor
        # What can be computed again is not stored with the weights.
        self.register_buffer("text", pad_text(text), persistent=False)
        self.item = nn.Embedding(len(text) + 1, hidden_size, padding_idx=0)
        self.place = nn.Embedding(max_length, hidden_size)
        nn.init.normal_(self.item.weight, std=WEIGHT_SPREAD)
        nn.init.normal_(self.place.weight, std=WEIGHT_SPREAD)
        with torch.no_grad():
            self.item.weight[0].zero_()
        self.adaptor = TextAdaptor(text.shape[1], hidden_size, max_length, experts, text_dropout)
        self.filters = nn.Parameter(
            torch.randn(max_length // 2 + 1, hidden_size, 2) * WEIGHT_SPREAD
        )
        self.item_gate = nn.Linear(hidden_size, 1)
        self.fusion_gate = nn.Linear(hidden_size, 1)
        for gate in (self.item_gate, self.fusion_gate):
            nn.init.normal_(gate.weight, std=WEIGHT_SPREAD)
        self.norm_input = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(AttentionBlock(hidden_size, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden_size)
        self.temperature = temperature

    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """Encodes item numbers [B, L] as states [B, L, H], each from the items up to its place."""
        states = self.encode_histories(_prefixes(sequences).flatten(0, 1))
        return states.view(*sequences.shape, -1)

    def encode_histories(self, histories: torch.Tensor) -> torch.Tensor:
        """Encodes histories [B, L] as the states of the users after their last place [B, H]."""
        mixed = self.mix(self.item(histories), self.adaptor(self.text[histories]))
        x = self.dropout(self.norm_input(mixed + self.place.weight))
        visible = causal_mask(histories)
        for block in self.blocks:
            x = block(x, visible)
        return self.norm(x)[:, -1]  # type: ignore[no-any-return]

    def mix(self, items: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Mixes embeddings of items with those of their texts, both [B, L, H]."""
        length = items.shape[1]
        item_spectrum, text_spectrum = (
            torch.fft.rfft(x, dim=1, norm="ortho") for x in (items, text)
        )
        filtered, fused = (
            torch.fft.irfft(spectrum, n=length, dim=1, norm="ortho")
            for spectrum in (
                item_spectrum * torch.view_as_complex(self.filters),
                item_spectrum * text_spectrum,
            )
        )
        return 2 * (  # type: ignore[no-any-return]
            filtered * torch.sigmoid(self.item_gate(filtered))
            + fused * torch.sigmoid(self.fusion_gate(fused))
        )

    def score_items(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores items [..., C] in states [..., H] by the cosine with their embeddings."""
        return F.cosine_similarity(self.item(items), states.unsqueeze(-2), dim=-1)

    def score_catalogue(self, states: torch.Tensor) -> torch.Tensor:
        """Scores every item in states [B, H]."""
        return F.normalize(states, dim=-1) @ F.normalize(self.item.weight[1:], dim=-1).T

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes the cross-entropy of each target over all items.

        Args:
            inputs: Item numbers [B, L].
            targets: Item that follows each place [B, L]; 0 where none does.
        """
        has_target = targets > 0
        states = self.encode_histories(_prefixes(inputs)[has_target])
        return F.cross_entropy(
            self.score_catalogue(states) / self.temperature, targets[has_target] - 1
        )

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Builds Adam."""
        return torch.optim.Adam(self.parameters(), lr=lr)


class TextAdaptor(nn.Module):
    """Mixture of experts, each of which whitens text vectors by parameters."""

    def __init__(
        self, text_size: int, hidden_size: int, max_length: int, experts: int, dropout: float
    ) -> None:
        """Builds the experts.

        Args:
            text_size: T.
            hidden_size: H.
            max_length: Places of a sequence.
            experts: E.
            dropout: Dropout of text vectors while training.
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.biases = nn.Parameter(torch.zeros(experts, max_length, text_size))
        self.weights = nn.Parameter(torch.randn(experts, text_size, hidden_size) * WEIGHT_SPREAD)
        self.gates = nn.Parameter(torch.zeros(text_size, experts))
        self.noise = nn.Parameter(torch.zeros(text_size, experts))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Adapts the text vectors of sequences [B, L, T] to [B, L, H]."""
        logits = text @ self.gates
        if self.training:
            spread = F.softplus(text @ self.noise) + MIN_NOISE
            logits = logits + torch.randn_like(logits) * spread
        mixture = logits.softmax(dim=-1)
        adapted = torch.zeros((), dtype=text.dtype)
        for expert, (bias, weight) in enumerate(zip(self.biases, self.weights, strict=True)):
            whitened = (self.dropout(text) - bias) @ weight
            adapted = adapted + mixture[..., expert, None] * whitened
        return adapted


def _prefixes(sequences: torch.Tensor) -> torch.Tensor:
    """Returns the items up to each place, padded with 0 on the left.

    Args:
        sequences: Item numbers [B, L].

    Returns:
        Item numbers [B, L, L].
    """
    length = sequences.shape[1]
    ends = range(1, length + 1)
    return torch.stack([F.pad(sequences[:, :end], (length - end, 0)) for end in ends], dim=1)

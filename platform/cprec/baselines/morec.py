"""MoRec: SASRec whose items are embedded by their text instead of by their number.

Yuan et al., "Where to Go Next for Recommender Systems? ID- vs. Modality-based Recommender Models
Revisited", 2023. A dense layer turns the text vector of an item into its embedding; sequences are
encoded, items ranked and losses computed as in SASRec. This is the paper's two-stage form, in which
the text encoder is not trained, and more dense layers may follow the first. The vectors are those
of a language model.

Shapes: see cprec.baselines.recommender. T is the size of a text vector.
"""

import torch
from torch import nn

from cprec.baselines.sasrec import SASRec


class MoRec(SASRec):
    """SASRec over embeddings of item text."""

    def __init__(
        self,
        text: torch.Tensor,
        max_length: int,
        hidden_size: int,
        blocks: int,
        dropout: float,
        *,
        layers: int,
    ) -> None:
        """Builds a network with fresh weights from torch's random generator.

        Args:
            text: Text vector of each item, in the order of the item numbers [items, T].
            max_length: Places of a sequence.
            hidden_size: Size of embeddings and states.
            blocks: Number of attention blocks.
            dropout: Dropout while training.
            layers: Layers of the item tower after the first.
        """
        tower = ItemTower(text, hidden_size, layers, dropout)
        super().__init__(len(text), max_length, hidden_size, blocks, dropout, tower)


class ItemTower(nn.Module):
    """Embeds items by dense layers over their text vectors."""

    def __init__(self, text: torch.Tensor, hidden_size: int, layers: int, dropout: float) -> None:
        """Builds the layers.

        Args:
            text: Text vector of each item [items, T].
            hidden_size: Size of embeddings.
            layers: Layers after the first.
            dropout: Dropout before each of them.
        """
        super().__init__()
        self.text: torch.Tensor
        # What can be computed again is not stored with the weights.
        self.register_buffer("text", pad_text(text), persistent=False)
        self.layers = nn.Sequential(nn.Linear(text.shape[1], hidden_size), nn.GELU())
        for _ in range(layers):
            self.layers.extend(
                [nn.Dropout(dropout), nn.Linear(hidden_size, hidden_size), nn.GELU()]
            )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Embeds item numbers [...] as [..., H]."""
        return self.layers(self.text[items])  # type: ignore[no-any-return]


def pad_text(text: torch.Tensor) -> torch.Tensor:
    """Puts a zero vector before those of the items [items, T]: that of padding."""
    return torch.cat([text.new_zeros(1, text.shape[1]), text])

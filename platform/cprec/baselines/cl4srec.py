"""CL4SRec: SASRec with a contrastive loss between two augmented views of each sequence.

Xie et al., "Contrastive Learning for Sequential Recommendation", 2022. A view is the sequence
cropped, masked or reordered; which, is drawn for each view of each sequence. Views of one sequence
attract each other, and repel all others of the mini-batch, by the inner products of their last
states. This loss is added to that of the next item, a sampled softmax, here with one negative at
every place as in SASRec.

Shapes: see cprec.baselines.recommender.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cprec.baselines.sasrec import SASRec


class CL4SRec(SASRec):
    """SASRec that learns from augmented sequences, too."""

    def __init__(
        self,
        num_items: int,
        max_length: int,
        hidden_size: int,
        blocks: int,
        dropout: float,
        *,
        weight: float,
        crop: float,
        mask: float,
        reorder: float,
    ) -> None:
        """Builds a network with fresh weights from torch's random generator.

        Args:
            num_items: Items of the domain.
            max_length: Places of a sequence.
            hidden_size: Size of embeddings and states.
            blocks: Number of attention blocks.
            dropout: Dropout while training.
            weight: Weight of the contrastive loss.
            crop: Fraction of a sequence that cropping keeps.
            mask: Fraction of a sequence that is masked.
            reorder: Fraction of a sequence that is reordered.
        """
        # The row after those of the items is that of the mask.
        table = nn.Embedding(num_items + 2, hidden_size, padding_idx=0)
        super().__init__(num_items, max_length, hidden_size, blocks, dropout, table)
        self.weight = weight
        self.fractions = (crop, mask, reorder)

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes the loss of the next item and the contrastive loss.

        Args:
            inputs: Item numbers [B, L].
            targets: Item that follows each place [B, L]; 0 where none does.
        """
        scores = self.score_targets(inputs, targets)
        next_item = F.softplus(scores[:, 1] - scores[:, 0]).mean()
        views = torch.cat([self.draw_view(inputs), self.draw_view(inputs)])
        return next_item + self.weight * contrastive_loss(self.encode_histories(views))

    def draw_view(self, sequences: torch.Tensor) -> torch.Tensor:
        """Returns each sequence [B, L] cropped, masked or reordered, as it is drawn."""
        crop_fraction, mask_fraction, reorder_fraction = self.fractions
        views = torch.stack(
            [
                crop(sequences, crop_fraction),
                mask(sequences, mask_fraction, self.num_items + 1),
                reorder(sequences, reorder_fraction),
            ]
        )
        rows = torch.arange(len(sequences))
        return views[torch.randint(len(views), rows.shape), rows]


def contrastive_loss(states: torch.Tensor) -> torch.Tensor:
    """Computes the cross-entropy of each view's partner among all other views.

    Args:
        states: States of the first views, then of the second views in the same order [2 B, H].
    """
    similarities = states @ states.T
    similarities.fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarities, torch.arange(len(states)).roll(len(states) // 2))


def crop(sequences: torch.Tensor, fraction: float) -> torch.Tensor:
    """Keeps a contiguous part of each sequence, of one item at least.

    Args:
        sequences: Item numbers [B, L], padded with 0 on the left.
        fraction: Fraction of its items, rounded down.

    Returns:
        The parts [B, L], padded likewise.
    """
    lengths = _lengths(sequences)
    kept = (lengths * fraction).long().clamp(min=1)
    dropped_after = _draw_up_to(lengths - kept)
    places = torch.arange(sequences.shape[1])
    shifted = sequences.gather(1, (places - dropped_after[:, None]).clamp(min=0))
    return torch.where(places >= sequences.shape[1] - kept[:, None], shifted, 0)


def mask(sequences: torch.Tensor, fraction: float, mask_number: int) -> torch.Tensor:
    """Replaces items of each sequence with the mask.

    Args:
        sequences: Item numbers [B, L], padded with 0 on the left.
        fraction: Fraction of its items that is replaced, rounded down.
        mask_number: Number that stands for the mask.
    """
    keys = torch.rand(sequences.shape).masked_fill(sequences == 0, 2.0)
    order = keys.argsort(dim=1).argsort(dim=1)
    masked = order < (_lengths(sequences) * fraction).long()[:, None]
    return sequences.masked_fill(masked, mask_number)


def reorder(sequences: torch.Tensor, fraction: float) -> torch.Tensor:
    """Shuffles a contiguous part of each sequence.

    Args:
        sequences: Item numbers [B, L], padded with 0 on the left.
        fraction: Fraction of its items that is shuffled, rounded down.
    """
    lengths = _lengths(sequences)
    shuffled = (lengths * fraction).long()
    width = sequences.shape[1]
    first = (width - lengths + _draw_up_to(lengths - shuffled))[:, None]
    places = torch.arange(width).expand(sequences.shape)
    is_shuffled = (places >= first) & (places < first + shuffled[:, None])
    # Keys of the part lie between the places before and after it.
    keys = torch.where(is_shuffled, first - 0.5 + torch.rand(sequences.shape), places.double())
    return sequences.gather(1, keys.argsort(dim=1, stable=True))


def _lengths(sequences: torch.Tensor) -> torch.Tensor:
    """Returns the number of items of each sequence [B]."""
    return (sequences > 0).sum(1)


def _draw_up_to(highest: torch.Tensor) -> torch.Tensor:
    """Draws a whole number from 0 to the highest of each row [B], all equally likely."""
    return (torch.rand(highest.shape) * (highest + 1)).long().minimum(highest)

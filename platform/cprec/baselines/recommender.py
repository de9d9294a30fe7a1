"""What the recommenders share: items in, states out, and a score for an item in a state.

Shapes: B sequences, L places (the last one is the most recent item; 0 pads on the left), H size of a state, C candidates.
"""

from abc import abstractmethod

import torch
from torch import nn


class Recommender(nn.Module):
    """A network over sequences of item numbers 1 .. items."""

    def __init__(self, item_count: int, max_length: int) -> None:
        super().__init__()
        self.item_count, self.max_length = item_count, max_length

    @abstractmethod
    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """[B, L] item numbers to [B, L, H]: what is known of the user after each place."""

    @abstractmethod
    def score_items(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores [..., C] of items [..., C] in states [..., H]; higher is better."""

    @abstractmethod
    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The training loss of [B, L] inputs and the items [B, L] that follow them, 0 where nothing does."""

    @abstractmethod
    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """The optimizer of the paper."""

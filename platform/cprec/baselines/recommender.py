"""The interface of the baselines: sequences of items to states, and scores of items in a state.

Shapes: B sequences, L places of a sequence (the last is the most recent item; 0 pads on the left),
H size of a state, C candidates.
"""

from abc import abstractmethod

import torch
from torch import nn


class Recommender(nn.Module):
    """A network over sequences of item numbers from 1 to the number of items."""

    def __init__(self, num_items: int, max_length: int) -> None:
        """Stores the sizes.

        Args:
            num_items: Items of the domain.
            max_length: Places of a sequence.
        """
        super().__init__()
        self.num_items = num_items
        self.max_length = max_length

    @abstractmethod
    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """Encodes sequences as states.

        Args:
            sequences: Item numbers [B, L].

        Returns:
            The state of the user after each item [B, L, H].
        """

    def encode_histories(self, histories: torch.Tensor) -> torch.Tensor:
        """Encodes histories [B, L] as the states of the users after their last place [B, H]."""
        return self.encode_sequences(histories)[:, -1]

    @abstractmethod
    def score_items(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores items in states.

        Args:
            states: States [..., H].
            items: Item numbers [..., C].

        Returns:
            Scores [..., C]; higher is better.
        """

    @abstractmethod
    def score_catalogue(self, states: torch.Tensor) -> torch.Tensor:
        """Scores every item in states [B, H], as `score_items` does, without copies of items.

        Returns:
            Scores [B, items], in the order of the item numbers.
        """

    @abstractmethod
    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes the training loss of a mini-batch.

        Args:
            inputs: Item numbers [B, L].
            targets: Item that follows each place [B, L]; 0 where none does.

        Returns:
            The loss, a scalar.
        """

    @abstractmethod
    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Builds the optimizer that the network's paper uses, with learning rate `lr`."""

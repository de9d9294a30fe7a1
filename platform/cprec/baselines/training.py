"""Trains a baseline to early stop, and scores candidates with it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cprec.baselines.gru4rec import GRU4Rec
from cprec.baselines.recommender import Recommender
from cprec.baselines.sasrec import SASRec
from cprec.baselines.sequences import input_target_windows, pad_histories
from cprec.config.sections.finetuning import BaselineSettings

SCORING_BATCH_SIZE = 1024
"""Histories scored in one forward pass."""
BASELINE_NAMES = ("sasrec", "gru4rec")
"""Names of the baselines, as in `evaluate.models`."""


@dataclass(frozen=True)
class FitResult:
    """Result of a training.

    Attributes:
        best: Highest validation measure.
        epoch: Epoch that reached it; 0 for the weights before training.
        epochs: Number of epochs trained.
    """

    best: float
    epoch: int
    epochs: int


def build_network(
    name: str, item_count: int, max_length: int, settings: BaselineSettings
) -> Recommender:
    """Builds a baseline with fresh weights from torch's random generator.

    Args:
        name: One of `BASELINE_NAMES`.
        item_count: Items of the domain.
        max_length: Places of a history.
        settings: The recipe's section `baseline`.

    Raises:
        ValueError: There is no baseline of this name.
    """
    if name == "sasrec":
        return SASRec(item_count, max_length, settings.size, settings.blocks, settings.dropout)
    if name == "gru4rec":
        return GRU4Rec(item_count, max_length, settings.size, settings.dropout)
    raise ValueError(f"no baseline {name}; there are {', '.join(BASELINE_NAMES)}")


def fit_network(
    network: Recommender,
    sequences: Sequence[Sequence[int]],
    settings: BaselineSettings,
    seed: int,
    measure: Callable[[Recommender], float],
) -> FitResult:
    """Trains a network in place until validation stops improving, and keeps its best weights.

    Training stops when the measure has not risen for `patience` epochs and for `patience_steps`
    steps. Equal arguments give equal weights on one machine and number of threads.

    Args:
        network: The network; it is left in evaluation mode.
        sequences: Training sequences of item numbers from 1 on, oldest first.
        settings: The recipe's section `baseline`.
        seed: Seed of the order of rows, of negatives and of dropout.
        measure: Measures a network on the validation split; higher is better.
    """
    inputs, targets = (
        torch.from_numpy(a) for a in input_target_windows(sequences, network.max_length)
    )
    lr = settings.gru4rec_lr if isinstance(network, GRU4Rec) else settings.lr
    optimizer = network.build_optimizer(lr)
    best = measure(network)
    best_epoch = 0
    best_weights = _copy_weights(network)
    batch_starts = list(range(settings.batch, len(inputs), settings.batch))
    steps_per_epoch = len(batch_starts) + 1
    patience = max(settings.patience, math.ceil(settings.patience_steps / steps_per_epoch))
    epoch = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while epoch < settings.max_epochs and epoch - best_epoch < patience:
            epoch += 1
            network.train()
            for rows in torch.randperm(len(inputs)).tensor_split(batch_starts):
                optimizer.zero_grad()
                torch.autograd.backward(network.loss(inputs[rows], targets[rows]))
                optimizer.step()
            if (measured := measure(network)) > best:
                best = measured
                best_epoch = epoch
                best_weights = _copy_weights(network)
    network.load_state_dict(best_weights)
    network.eval()
    return FitResult(best, best_epoch, epoch)


@torch.inference_mode()
def score_candidates(
    network: Recommender, histories: Sequence[Sequence[int]], candidates: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores candidates after histories.

    Args:
        network: The network; it is left in evaluation mode.
        histories: Item numbers of each history, oldest first [n].
        candidates: Item numbers [n, C].

    Returns:
        Scores [n, C]; higher is better.
    """
    network.eval()
    rows = torch.from_numpy(pad_histories(histories, network.max_length))
    items = torch.from_numpy(candidates)
    batches = [
        network.score_items(
            network.encode_sequences(rows[start : start + SCORING_BATCH_SIZE])[:, -1],
            items[start : start + SCORING_BATCH_SIZE],
        ).double()
        for start in range(0, max(len(rows), 1), SCORING_BATCH_SIZE)
    ]
    return np.asarray(torch.cat(batches).numpy(), dtype=np.float64)


@torch.inference_mode()
def iter_catalogue_scores(
    network: Recommender, histories: Sequence[Sequence[int]], block_rows: int
) -> Iterator[NDArray[np.float32]]:
    """Yields the scores of all items after histories, for some histories at a time.

    Args:
        network: The network; it is left in evaluation mode.
        histories: Item numbers of each history, oldest first [n].
        block_rows: Histories scored at a time.

    Yields:
        Scores [rows, items] in the order of the item numbers; higher is better.
    """
    network.eval()
    for start in range(0, len(histories), block_rows):
        rows = pad_histories(histories[start : start + block_rows], network.max_length)
        states = network.encode_sequences(torch.from_numpy(rows))[:, -1]
        yield network.score_catalogue(states).numpy()


def _copy_weights(network: Recommender) -> Mapping[str, torch.Tensor]:
    """Returns a copy of a network's weights by name."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}

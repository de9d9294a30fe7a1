"""Training of a recommender to early stop, and its scores for candidates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cprec.baselines.gru4rec import GRU4Rec
from cprec.baselines.recommender import Recommender
from cprec.baselines.sasrec import SASRec
from cprec.baselines.sequences import input_target_windows, pad_histories
from cprec.config.recipe import BaselineSettings

SCORING_BATCH_SIZE = 1024
BASELINE_NAMES = ("sasrec", "gru4rec")


@dataclass(frozen=True)
class FitResult:
    """What a training came to. best: highest validation measure; epoch: the one that reached it; epochs: trained."""

    best: float
    epoch: int
    epochs: int


def build_network(
    name: str, item_count: int, max_length: int, settings: BaselineSettings
) -> Recommender:
    """A fresh network. items: of the domain; length: places of a history."""
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
    """Train in place until `measure` (on the validation split, higher is better) has not risen for `patience` epochs and `patience_steps` steps; the
    best weights are kept.

    sequences: training sequences of item numbers 1 .. items. A function of (network, sequences, settings, seed) on one machine and number of threads.
    """
    inputs, targets = (
        torch.from_numpy(a) for a in input_target_windows(sequences, network.max_length)
    )
    optimizer = network.build_optimizer(
        settings.lr if isinstance(network, SASRec) else settings.gru4rec_lr
    )
    best, best_epoch, kept = measure(network), 0, _copy_weights(network)
    cuts = list(range(settings.batch, len(inputs), settings.batch))
    patience = max(settings.patience, math.ceil(settings.patience_steps / (len(cuts) + 1)))
    epoch = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while epoch < settings.max_epochs and epoch - best_epoch < patience:
            epoch += 1
            network.train()
            for rows in torch.randperm(len(inputs)).tensor_split(cuts):
                optimizer.zero_grad()
                torch.autograd.backward(network.loss(inputs[rows], targets[rows]))
                optimizer.step()
            if (reached := measure(network)) > best:
                best, best_epoch, kept = reached, epoch, _copy_weights(network)
    network.load_state_dict(kept)
    network.eval()
    return FitResult(best, best_epoch, epoch)


@torch.inference_mode()
def score_candidates(
    network: Recommender, histories: Sequence[Sequence[int]], candidates: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores [n, C] of candidates [n, C] after histories, all as item numbers; higher is better."""
    network.eval()
    rows, items = (
        torch.from_numpy(pad_histories(histories, network.max_length)),
        torch.from_numpy(candidates),
    )
    parts = [
        network.score_items(
            network.encode_sequences(rows[at : at + SCORING_BATCH_SIZE])[:, -1],
            items[at : at + SCORING_BATCH_SIZE],
        ).double()
        for at in range(0, max(len(rows), 1), SCORING_BATCH_SIZE)
    ]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def _copy_weights(network: Recommender) -> Mapping[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}

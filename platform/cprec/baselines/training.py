"""Training of a recommender to early stop, and its scores for candidates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cprec.baselines.gru4rec import GRU4Rec
from cprec.baselines.network import Recommender
from cprec.baselines.sasrec import SASRec
from cprec.baselines.sequences import padded, pieces
from cprec.config.recipe import BaselineSettings

SCORED_AT_ONCE = 1024
NAMES = ("sasrec", "gru4rec")


@dataclass(frozen=True)
class Fitted:
    """What a training came to. best: highest validation measure; epoch: the one that reached it; epochs: trained."""

    best: float
    epoch: int
    epochs: int


def make(name: str, items: int, length: int, settings: BaselineSettings) -> Recommender:
    """A fresh network. items: of the domain; length: places of a history."""
    if name == "sasrec":
        return SASRec(items, length, settings.size, settings.blocks, settings.dropout)
    if name == "gru4rec":
        return GRU4Rec(items, length, settings.size, settings.dropout)
    raise ValueError(f"no baseline {name}; there are {', '.join(NAMES)}")


def fit(
    network: Recommender,
    sequences: Sequence[Sequence[int]],
    settings: BaselineSettings,
    seed: int,
    measure: Callable[[Recommender], float],
) -> Fitted:
    """Train in place until `measure` (on the validation split, higher is better) has not risen for `patience` epochs and `patience_steps` steps; the
    best weights are kept.

    sequences: training sequences of item numbers 1 .. items. A function of (network, sequences, settings, seed) on one machine and number of threads.
    """
    inputs, targets = (torch.from_numpy(a) for a in pieces(sequences, network.length))
    optimizer = network.optimizer(
        settings.rate if isinstance(network, SASRec) else settings.gru_rate
    )
    best, best_epoch, kept = measure(network), 0, _copy(network)
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
                best, best_epoch, kept = reached, epoch, _copy(network)
    network.load_state_dict(kept)
    network.eval()
    return Fitted(best, best_epoch, epoch)


@torch.inference_mode()
def score(
    network: Recommender, histories: Sequence[Sequence[int]], candidates: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores [n, C] of candidates [n, C] after histories, all as item numbers; higher is better."""
    network.eval()
    rows, items = torch.from_numpy(padded(histories, network.length)), torch.from_numpy(candidates)
    parts = [
        network.worth(
            network.states(rows[at : at + SCORED_AT_ONCE])[:, -1], items[at : at + SCORED_AT_ONCE]
        ).double()
        for at in range(0, max(len(rows), 1), SCORED_AT_ONCE)
    ]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def _copy(network: Recommender) -> Mapping[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}

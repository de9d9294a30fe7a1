"""Trains a baseline to early stop, and scores candidates with it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cprec.baselines.cl4srec import CL4SRec
from cprec.baselines.gru4rec import GRU4Rec
from cprec.baselines.morec import MoRec
from cprec.baselines.recommender import Recommender
from cprec.baselines.sasrec import SASRec
from cprec.baselines.sequences import input_target_windows, pad_histories
from cprec.baselines.tedrec import TedRec
from cprec.config.sections.finetuning import BaselineSettings

SCORING_BATCH_SIZE = 1024
"""Histories scored in one forward pass."""
TEXT_BASELINES = ("tedrec", "morec")
"""Names of the baselines that read the text of items."""
BASELINE_NAMES = ("sasrec", "gru4rec", "cl4srec", *TEXT_BASELINES)
"""Names of the baselines, as in `evaluate.models`."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class ItemText:
    """The texts of a domain's items, as a language model embeds them.

    Attributes:
        identity: Everything that the vectors depend on besides the titles, as JSON has it.
        vectors: A vector of each item, in the order of the item numbers [items, T].
    """

    identity: Mapping[str, Any]
    vectors: Vectors


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
    name: str,
    num_items: int,
    max_length: int,
    settings: BaselineSettings,
    text: Vectors | None = None,
) -> Recommender:
    """Builds a baseline with fresh weights from torch's random generator.

    Args:
        name: One of `BASELINE_NAMES`.
        num_items: Items of the domain.
        max_length: Places of a history.
        settings: The recipe's section `baseline`.
        text: A vector of each item's text [items, T]; None for a baseline that reads none.

    Raises:
        ValueError: There is no baseline of this name, or it reads text and has none.
    """
    layers = (max_length, settings.size, settings.blocks, settings.dropout)
    match name:
        case "sasrec":
            return SASRec(num_items, *layers)
        case "gru4rec":
            return GRU4Rec(num_items, max_length, settings.size, settings.dropout)
        case "cl4srec":
            return CL4SRec(
                num_items,
                *layers,
                weight=settings.cl4srec_weight,
                crop=settings.cl4srec_crop,
                mask=settings.cl4srec_mask,
                reorder=settings.cl4srec_reorder,
            )
        case "tedrec" if text is not None:
            return TedRec(
                torch.from_numpy(text),
                *layers,
                experts=settings.tedrec_experts,
                text_dropout=settings.tedrec_text_dropout,
                temperature=settings.tedrec_temperature,
            )
        case "morec" if text is not None:
            return MoRec(torch.from_numpy(text), *layers, layers=settings.morec_layers)
    raise ValueError(
        f"{name} reads the text of items, and there is none"
        if name in TEXT_BASELINES
        else f"no baseline {name}; there are {', '.join(BASELINE_NAMES)}"
    )


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
            network.encode_histories(rows[start : start + SCORING_BATCH_SIZE]),
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
        states = network.encode_histories(torch.from_numpy(rows))
        yield network.score_catalogue(states).numpy()


def _copy_weights(network: Recommender) -> Mapping[str, torch.Tensor]:
    """Returns a copy of a network's weights by name."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}

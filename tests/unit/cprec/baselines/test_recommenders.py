"""The baselines learn a planted rule, see no future items, and stop early as they should."""

import numpy as np
import pytest
import torch

from cprec.baselines.recommender import Recommender
from cprec.baselines.training import BASELINE_NAMES, build_network, fit_network, score_candidates
from cprec.config.sections.finetuning import BaselineSettings

ITEMS, LENGTH = 30, 6
TEXT = np.random.default_rng(0).standard_normal((ITEMS, 12)).astype(np.float32)
SETTINGS = BaselineSettings(
    size=16, dropout=0.0, batch=32, lr=1e-2, gru4rec_lr=0.1, max_epochs=30, patience=30
)


def fresh(name: str, seed: int = 0) -> Recommender:
    torch.manual_seed(seed)
    return build_network(name, ITEMS, LENGTH, SETTINGS, TEXT)


def circles(count: int, seed: int) -> list[list[int]]:
    """Sequences in which the next item is always the item plus 7, around the circle."""
    rng = np.random.default_rng(seed)
    return [
        [int((start + 7 * step) % ITEMS) + 1 for step in range(LENGTH + 1)]
        for start in rng.integers(0, ITEMS, count)
    ]


def hit_rate(network: Recommender) -> float:
    """Returns HR@1 among the items that the user does not have yet, as in the corpus."""
    sequences = circles(50, 1)
    candidates = np.array([[s[-1], *(set(range(1, ITEMS + 1)) - set(s))] for s in sequences])
    scores = score_candidates(network, [s[:-1] for s in sequences], candidates)
    return float((scores.argmax(axis=1) == 0).mean())


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_a_planted_rule_is_learned(name: str) -> None:
    network = fresh(name)
    before = hit_rate(network)
    fitted = fit_network(network, circles(200, 0), SETTINGS, 0, hit_rate)
    assert before < 0.2
    assert hit_rate(network) == fitted.best > 0.9


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_states_do_not_depend_on_later_items(name: str) -> None:
    network = fresh(name).eval()
    first = torch.tensor([[0, 1, 2, 3, 4, 5]])
    other = torch.tensor([[0, 1, 2, 3, 9, 8]])
    with torch.no_grad():
        assert torch.equal(
            network.encode_sequences(first)[:, :4], network.encode_sequences(other)[:, :4]
        )
        assert not torch.equal(
            network.encode_sequences(first)[:, 4:], network.encode_sequences(other)[:, 4:]
        )


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_padding_does_not_change_scores(name: str) -> None:
    network = fresh(name).eval()
    candidates = np.array([[3, 4, 5], [3, 4, 5]])
    together = score_candidates(network, [[1, 2], [1, 2, 3, 4, 5, 6]], candidates)
    alone = np.concatenate(
        [score_candidates(network, [h], candidates[:1]) for h in ([1, 2], [1, 2, 3, 4, 5, 6])]
    )
    assert np.abs(together - alone).max() < 1e-6


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    network = fresh("sasrec")
    measures = iter([0.0, 0.1, 0.5, 0.4, 0.5, 0.3, 0.2])
    weights_at_measure = []

    def measure(current: Recommender) -> float:
        weights_at_measure.append({name: t.clone() for name, t in current.state_dict().items()})
        return next(measures)

    settings = SETTINGS.model_copy(update={"patience": 3, "patience_steps": 0})
    fitted = fit_network(network, circles(40, 0), settings, 0, measure)
    assert (fitted.best, fitted.epoch, fitted.epochs) == (0.5, 2, 5)
    best_weights = weights_at_measure[2]
    assert all(torch.equal(best_weights[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize(("steps", "epochs"), [(0, 4), (6, 4), (7, 5), (20, 11)])
def test_patience_counts_steps_too_where_samples_are_few(steps: int, epochs: int) -> None:
    """40 sequences in batches of 32 are two steps an epoch; the first epoch is the best."""
    measures = iter([0.1, 0.2, *[0.1] * 30])
    settings = SETTINGS.model_copy(update={"patience": 3, "patience_steps": steps})
    fitted = fit_network(
        fresh("sasrec"), circles(40, 0), settings, 0, lambda network: next(measures)
    )
    assert fitted.epochs == epochs


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_equal_seeds_give_equal_weights(name: str) -> None:
    weights = []
    for _ in range(2):
        network = fresh(name)
        fit_network(
            network, circles(40, 0), SETTINGS.model_copy(update={"max_epochs": 2}), 3, hit_rate
        )
        weights.append(network.state_dict())
    assert all(torch.equal(weights[0][name], t) for name, t in weights[1].items())


def test_the_loss_of_gru4rec_is_top1() -> None:
    """TOP1 of a small batch, term by term (Hidasi et al., Sec. 3.2.3)."""
    network = fresh("gru4rec").eval()
    inputs = torch.zeros(3, LENGTH, dtype=torch.long)
    targets = torch.zeros(3, LENGTH, dtype=torch.long)
    inputs[:, -1] = torch.tensor([1, 2, 3])
    targets[:, -1] = torch.tensor([4, 5, 6])
    with torch.no_grad():
        states = network.encode_sequences(inputs)[:, -1]
        r = [
            [float(network.score_items(states[i], torch.tensor(j))) for j in (4, 5, 6)]
            for i in range(3)
        ]
        loss = float(network.loss(inputs, targets))

    def sigmoid(x: float) -> float:
        return float(1 / (1 + np.exp(-x)))

    terms = [
        sum(sigmoid(r[i][j] - r[i][i]) + sigmoid(r[i][j] ** 2) for j in range(3) if j != i) / 2
        for i in range(3)
    ]
    assert loss == pytest.approx(np.mean(terms), abs=1e-6)

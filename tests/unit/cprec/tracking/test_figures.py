"""The picture of a search: every epoch of every trial, and the intervals of what was measured."""

import re

import pytest

from cprec.downstream.trial_records import TrialResult
from cprec.tracking.figures import plot_trials


def trial(lr: float, seed: int, *history: float) -> TrialResult:
    return TrialResult(
        lr=lr,
        seed=seed,
        hr1=max(history, default=0.0),
        epoch=len(history),
        history=history,
        checkpoint="c",
        stopped=False,
        diverged=not history,
    )


@pytest.mark.parametrize(
    "trials",
    [
        [trial(1e-3, 0, 0.2, 0.3, 0.25), trial(1e-4, 0, 0.0)],
        [trial(1e-3, 0, 0.2), trial(1e-3, 1, 0.4), trial(1e-4, 0)],
    ],
)
def test_each_trial_and_each_learning_rate_has_an_interval(trials: list[TrialResult]) -> None:
    picture = plot_trials(trials, 1e-3, 100)
    # matplotlib draws the bars of a curve as one collection; so are those of the legend.
    bars = len(re.findall(r'<g id="LineCollection_\d+">', picture))
    drawn = [trial for trial in trials if trial.history]
    assert bars == len(drawn) + len(trials) + 1
    assert "0.001, seed 0" in picture
    assert plot_trials(trials, 1e-3, 100) == picture
    assert plot_trials(trials, 1e-3, 10_000) != picture

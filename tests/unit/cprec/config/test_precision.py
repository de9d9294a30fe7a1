"""A recipe that is tens of times slower than it need be says so, once, before anything is done."""

import sys

import pytest
import torch

from cprec.config import command
from cprec.config.cli import Job
from cprec.config.precision import SLOW_BF16, slow_precision_notice
from cprec.config.recipe_file import load_recipe

RANKS = (*command.MODEL_KEYS, *command.RANKING_KEYS)
TRAINS = command.TRAINING_KEYS
BF16 = ("--model.precision", "bf16")


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without a GPU, whose CPU has no instructions for bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return monkeypatch


@pytest.mark.parametrize(
    ("keys", "arguments", "is_told"),
    [
        (RANKS, BF16, True),
        (TRAINS, BF16, True),
        (TRAINS, (*BF16, "--dry-run"), True),
        (RANKS, (), False),
        (TRAINS, (*BF16, "--train.gpus_per_worker", "1"), False),
        (TRAINS, (*BF16, "--search.gpus_per_trial", "0.5"), False),
        (RANKS, (*BF16, "--serve.gpus_per_replica", "1"), False),
        (command.MODEL_KEYS, BF16, False),  # such as a merge, which only copies weights
    ],
)
def test_a_job_that_computes_in_slow_bf16_says_so(
    keys: tuple[str, ...],
    arguments: tuple[str, ...],
    is_told: bool,
    cpu: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cpu.setattr(sys, "argv", ["job.py", *arguments])
    assert command.main(Job(lambda recipe, options: None, "A job.", keys)) == command.SUCCESS
    lines = capsys.readouterr().err.splitlines()
    assert (lines[:1] == [SLOW_BF16]) == (SLOW_BF16 in lines) == is_told


def test_nothing_is_said_where_bf16_is_fast(cpu: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(str(command.DEMO_RECIPE), {"model.precision": "bf16"})
    assert slow_precision_notice(recipe) == SLOW_BF16
    cpu.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert slow_precision_notice(recipe) is None
    cpu.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    cpu.setattr(torch.cuda, "is_available", lambda: True)
    assert slow_precision_notice(recipe) is None

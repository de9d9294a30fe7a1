"""A run that commit e464aad began and that was killed after 128 of 646 samples is still read.

`run_of_e464aad` is its folder, with one checkpoint: one worker, three domains of simulated
shoppers, a LLaMA of one layer. Paths and the name of the machine are replaced.
"""

import json
from pathlib import Path

import pytest
import torch

from cprec.config.recipe_file import load_recipe
from cprec.model import adapter
from cprec.runs import checkpoint
from cprec.runs.events import CheckpointSaved, RunStarted
from cprec.runs.locks.recipe import check_unchanged
from cprec.runs.records import Status
from cprec.runs.restart import find_last_checkpoint
from cprec.runs.run_records import read_run_records
from cprec.schedule.wsa import Phase
from tests.models import llama

RUN = Path(__file__).parent / "run_of_e464aad"
CHECKPOINT = RUN / "checkpoints" / "000000000128-0"


def test_its_recipe_is_that_of_the_next_start(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(str(RUN / "resolved.yaml"))
    assert recipe.search.lrs == (1e-3, 1e-4)
    assert recipe.baseline.gru4rec_lr == 0.05
    assert recipe.finetune.lr_min_ratio == 0.01
    assert check_unchanged(recipe, str(RUN)) == recipe
    assert capsys.readouterr() == ("", "")


def test_its_records_have_the_types_of_today() -> None:
    records = read_run_records(str(RUN))
    assert [row.samples for row in records.trace] == [0, 32, 64, 96]
    assert [row.lr for row in records.trace] == [5e-06, 0.001, 0.001, 0.001]
    assert isinstance(records.events[0], RunStarted)
    assert isinstance(records.events[-1], CheckpointSaved)
    assert records.run_plan is not None
    assert records.run_plan.plan.total_samples == 646
    status = Status.from_json(json.loads((RUN / "status.json").read_text()))
    assert (status.phase, status.lr, status.samples) == (Phase.STABLE, 0.001, 32)


def test_it_goes_on_from_its_checkpoint() -> None:
    name, problems = find_last_checkpoint(str(RUN))
    assert (str(name), problems) == (CHECKPOINT.name, [])
    ledger = checkpoint.read_verified_ledger(str(CHECKPOINT))
    records = read_run_records(str(RUN))
    assert (ledger.samples, ledger.steps) == (128, len(records.trace))
    assert records.run_plan is not None
    assert ledger.plan == records.run_plan.plan
    state = checkpoint.load_training_state(str(CHECKPOINT))
    assert state.steps == 4
    assert set(state.moments) == {"exp_avg", "exp_avg_sq"}
    assert all(set(moment) == set(state.weights) for moment in state.moments.values())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_its_adapter_is_loaded() -> None:
    base = llama(600, intermediate_size=85, num_hidden_layers=1, num_attention_heads=2)
    model = adapter.load_for_training(base, CHECKPOINT / "adapter")
    state = checkpoint.load_training_state(str(CHECKPOINT))
    loaded = adapter.trainable_parameters(model)
    assert set(loaded) == set(state.weights)
    assert all(torch.equal(loaded[name], weight) for name, weight in state.weights.items())

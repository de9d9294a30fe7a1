"""How a trial of a search ends that Tune ended: cut short by a stopper, or not at all."""

import json
from pathlib import Path

import pytest

from cluster.errors import PlatformFault
from cprec.config.recipe import FinetuneSettings, Recipe
from cprec.downstream import trial as trials_of
from cprec.downstream.llara import build_plan
from cprec.downstream.lr_search import conclude_stopped_trial
from cprec.downstream.trial import Trial
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger


@pytest.fixture
def unfinished(tmp_path: Path) -> Trial:
    """A trial of three epochs after its first one."""
    trial = Trial(
        Recipe(), str(tmp_path / "trials" / "0.001-0"), "Games", "base", None, None, 1e-3, 0
    )
    uri = checkpoint.checkpoint_uri(trial.uri, checkpoint.CheckpointName(40, 0))
    made = tmp_path / "made"
    made.mkdir()
    (made / trials_of.HISTORY_FILE).write_text(
        json.dumps([{"epoch": 1, "hr1": 0.5, "loss": 1.0, "samples": 40, "checkpoint": uri}])
    )
    checkpoint.commit(
        made,
        uri,
        Ledger(
            build_plan("downstream/Games", 0, 40, 1e-3, FinetuneSettings(epochs=3), 0), 40, 1, 7
        ),
    )
    return trial


@pytest.mark.parametrize("stopper", ["asha", "median"])
def test_a_stopper_cuts_a_trial_short(unfinished: Trial, stopper: str) -> None:
    tuned = conclude_stopped_trial(unfinished, stopper)
    assert (tuned.history, tuned.stopped) == ((0.5,), True)
    assert trials_of.find_result(unfinished.uri) == tuned


def test_without_a_stopper_an_unfinished_trial_is_no_result(unfinished: Trial) -> None:
    with pytest.raises(PlatformFault, match=r"0\.001-0.*stopper is none"):
        conclude_stopped_trial(unfinished, "none")
    assert trials_of.find_result(unfinished.uri) is None

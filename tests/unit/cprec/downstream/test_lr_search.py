"""A trial that Tune ended is a result if the search has a stopper, and an error otherwise."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from ray.exceptions import RayTaskError

from cluster.errors import PlatformFault, RecipeError
from cprec.config.recipe import Recipe
from cprec.config.sections.finetuning import FinetuneSettings, SearchSettings
from cprec.downstream import lr_search
from cprec.downstream.llara import build_plan
from cprec.downstream.lr_search import conclude_stopped_trial, lrs_within_noise
from cprec.downstream.trial import Trial
from cprec.downstream.trial_records import HISTORY_FILE, TrialResult, find_result
from cprec.encode.prompt import TABLE1
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger


@pytest.fixture
def unfinished(tmp_path: Path) -> Trial:
    """A trial of three epochs, interrupted after the first."""
    trial = Trial(
        Recipe(), str(tmp_path / "trials" / "0.001-0"), "Games", "base", None, None, 1e-3, 0, TABLE1
    )
    uri = checkpoint.checkpoint_uri(trial.uri, checkpoint.CheckpointName(40, 0))
    directory = tmp_path / "checkpoint"
    (directory / "adapter").mkdir(parents=True)
    (directory / "adapter" / "weights").write_text("")
    (directory / HISTORY_FILE).write_text(
        json.dumps([{"epoch": 1, "hr1": 0.5, "loss": 1.0, "samples": 40, "checkpoint": uri}])
    )
    checkpoint.commit(
        directory,
        uri,
        Ledger(
            build_plan("downstream/Games", 0, 40, 1e-3, FinetuneSettings(epochs=3), 0), 40, 1, 7
        ),
    )
    return trial


@pytest.mark.parametrize("stopper", ["asha", "median"])
def test_a_trial_that_a_stopper_ended_is_a_result(unfinished: Trial, stopper: str) -> None:
    result = conclude_stopped_trial(unfinished, stopper)
    assert (result.history, result.stopped) == ((0.5,), True)
    assert find_result(unfinished.uri) == result


def test_without_a_stopper_an_unfinished_trial_is_no_result(unfinished: Trial) -> None:
    with pytest.raises(PlatformFault, match=r"0\.001-0.*stopper is none"):
        conclude_stopped_trial(unfinished, "none")
    assert find_result(unfinished.uri) is None


def test_the_error_of_a_trial_is_the_users_own_sentence() -> None:
    from_ray = RayTaskError("train", "a long traceback", RecipeError("model.base: cut"))
    results = SimpleNamespace(errors=[None, from_ray.as_instanceof_cause()])
    with pytest.raises(RecipeError) as raised:
        lr_search._raise_first_error(results)  # type: ignore[arg-type]
    assert str(raised.value) == "model.base: cut"


def test_learning_rates_that_a_search_cannot_tell_apart_are_named() -> None:
    hr1s = {1e-4: 0.30, 1e-3: 0.30, 3e-3: 0.27, 1e-2: 0.10}
    results = [TrialResult(lr, 0, hr1, 1, "", (hr1,)) for lr, hr1 in hr1s.items()]
    results.append(TrialResult(1e-1, 0, 0.0, 0, "", (), diverged=True))
    assert lrs_within_noise(results, 300) == (1e-3, 3e-3)
    assert lrs_within_noise(results, 1_000_000) == (1e-3,)
    assert lrs_within_noise(results[2:4], 1_000_000) == ()


@pytest.mark.parametrize("lr", [0.0, -1e-4, float("inf"), float("nan")])
def test_a_learning_rate_that_is_none_is_refused(lr: float) -> None:
    with pytest.raises(ValidationError, match="lrs"):
        SearchSettings(lrs=(lr, 1e-4))


def test_learning_rates_with_one_name_are_one_trial() -> None:
    settings = SearchSettings(lrs=(3e-4, 3.0000001e-4, 1e-4))
    assert [f"{lr:g}" for lr in lr_search.trial_lrs(settings, 0)] == ["0.0003", "0.0001"]


def test_what_is_repeated_has_the_seeds_from_that_of_the_recipe_on() -> None:
    assert list(Recipe(seed=10).seeds(3)) == [10, 11, 12]

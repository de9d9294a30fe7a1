"""The search of the learning rate for real: Tune, the engine, the registry; what a kill, early stopping and absurd rates do to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM

from cprec.registry import Registry
from cprec.train import checkpoint
from tests.integration import jobs

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers under a name of the past

NOTHING, PLANTED, ABSURD = 1e-9, 1e-2, 1e30
"""Rates: nothing is learned at the first; only the second one learns; the numbers end at the third."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    """A recipe, and its corpus."""
    path = jobs.recipe(
        place,
        workers=1,
        simulate={"users": 60, "items_per_domain": 40, "domains_per_user": 3, "interactions_per_domain": 8},
        finetune={"start": "fresh", "epochs": 3, "global_batch": 16, "max_samples": 60, "validation_users": 20},
        search={"rates": [NOTHING, PLANTED, ABSURD], "winner_seeds": 1},
        baseline={"max_epochs": 1, "size": 16},
    )
    jobs.run("build_corpus", path)
    return path


@pytest.fixture(scope="module")
def search(recipe: Path, place: Path) -> Path:
    """A search from fresh weights. Returns its folder."""
    assert "registered cprec-Games version 1" in jobs.run("tune_lr", recipe).stdout
    return place / "runs" / "small" / "finetune" / "Games" / "llara"


def ended(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return found


def outcome(folder: Path) -> list[tuple[float, int, list[float], bool, bool]]:
    return [(t["rate"], t["seed"], t["history"], t["stopped"], t["diverged"]) for t in ended(folder)["trials"]]


def test_the_rate_that_is_best_on_validation_wins(search: Path, place: Path) -> None:
    found = ended(search)
    of = {trial["rate"]: trial for trial in found["trials"]}
    assert set(of) == {NOTHING, PLANTED, ABSURD}
    assert of[found["winner"]["rate"]]["hr1"] == max(trial["hr1"] for trial in of.values())
    assert (of[ABSURD]["diverged"], of[ABSURD]["history"], of[ABSURD]["checkpoint"]) == (True, [], "")
    assert [len(of[rate]["history"]) for rate in (NOTHING, PLANTED)] == [3, 3]
    assert [seed["seed"] for seed in found["winner"]["seeds"]] == [0]
    names = {"0.01-0", "1e-09-0", "1e+30-0"}
    assert {path.parent.name for path in search.glob("trials/*/tuned.json")} == names
    assert "<svg" in (search / "trials.svg").read_text()
    client = Registry(f"sqlite:///{place}/runs/mlflow.db", "cprec", "cprec").client
    experiment = client.get_experiment_by_name("cprec")
    assert experiment
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in client.search_runs([experiment.experiment_id])}
    assert set(parents) == {"small-Games-llara", *names}
    assert len({parents[name] for name in names} - {None}) == 1


def test_a_checkpoint_is_a_peft_directory_with_the_projector_beside_it(search: Path) -> None:
    uri = ended(search)["winner"]["best"]["checkpoint"]
    checkpoint.verify(uri)
    assert (Path(uri) / "behaviour" / "behaviour.safetensors").is_file()
    AutoPeftModelForCausalLM.from_pretrained(Path(uri) / "adapter")


def test_a_search_that_was_killed_ends_as_it_would_have(search: Path, recipe: Path, place: Path) -> None:
    killed = place / "runs" / "killed" / "finetune" / "Games" / "llara"
    process = jobs.start("tune_lr", recipe, "--run", "killed")
    second = killed / "trials" / f"{PLANTED:g}-0"
    jobs.kill_when(process, lambda: any(second.glob("checkpoints/*/manifest.json")) and not (second / "tuned.json").exists())
    first = killed / "trials" / f"{NOTHING:g}-0" / "tuned.json"
    before = first.stat().st_mtime_ns
    assert not (killed / "search.json").exists()
    shown = jobs.run("tune_lr", recipe, "--run", "killed").stdout
    assert "2 of 3 trials to train" in shown
    assert first.stat().st_mtime_ns == before
    assert outcome(killed) == outcome(search)
    assert ended(killed)["winner"]["rate"] == ended(search)["winner"]["rate"]
    # It went on from its first epoch: the second one's checkpoint is of another attempt.
    assert {Path(path).name.partition("-")[2] for path in second.glob("checkpoints/*")} >= {"1"}


def test_trials_of_two_workers_from_another_domains_fine_tuning_are_cut_short(search: Path, recipe: Path, place: Path) -> None:
    """As CD-LLaRA: LoRA starts from what was tuned on Games."""
    start = ended(search)["winner"]["best"]["checkpoint"]
    pair = place / "runs" / "pair" / "finetune" / "Garden" / "cross"
    options = {"run": "pair", "workers": 2, "finetune.domain": "Garden", "finetune.name": "cross", "finetune.start": start}
    options |= {"search.stopper": "asha", "search.rates": f"{PLANTED},1.0", "search.concurrent": 1}
    shown = jobs.run("tune_lr", recipe, *(part for key, value in options.items() for part in (f"--{key}", str(value)))).stdout
    assert "registered cprec-Garden version 1" in shown
    good, bad = ended(pair)["trials"]
    assert (len(good["history"]), good["stopped"]) == (3, False)
    assert (len(bad["history"]) < 3, bad["stopped"]) == (True, True)
    assert ended(pair)["start"] == start
    assert ended(pair)["winner"]["rate"] == PLANTED
    shutil.rmtree(pair)

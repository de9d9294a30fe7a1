"""The search of the learning rate for real: Tune, the engine, MLflow. A planted best rate is found, a killed search goes on, its result is scored."""

import json
import shutil
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM

from cprec.registry import Registry
from cprec.train import checkpoint
from tests.integration import jobs

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers under a name of the past

RATES = (1e-9, 1e-2)
"""The first teaches nothing in a few dozen steps."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    """Enough shoppers in the held-out domain for a tiny model to learn something from them in seconds."""
    path = jobs.recipe(
        place,
        workers=1,
        simulate={"users": 150, "items_per_domain": 40, "domains_per_user": 3, "interactions_per_domain": 10},
        tiny={"hidden": 32, "layers": 2, "heads": 2, "vocabulary": 600, "language_steps": 150},
        finetune={"start": "fresh", "epochs": 2, "global_batch": 16, "max_samples": 500, "validation_users": 100},
        search={"rates": list(RATES), "winner_seeds": 2},
        baseline={"max_epochs": 3, "size": 16},
        evaluate={"models": ["base", "sasrec", "llara"], "max_users": 60},
    )
    jobs.run("build_corpus", path)
    return path


@pytest.fixture(scope="module")
def search(recipe: Path, place: Path) -> Path:
    """A search from fresh weights, its driver killed -9 after the first epoch of a trial, and the same command again. Returns its folder."""
    process = jobs.start("tune_lr", recipe)
    jobs.kill_when(process, lambda: bool(list(place.glob("runs/small/finetune/Games/llara/trials/*/checkpoints/*/manifest.json"))))
    told = jobs.run("tune_lr", recipe).stdout
    assert "best learning rate 0.01" in told
    assert "registered cprec-Games version 1" in told
    return place / "runs" / "small" / "finetune" / "Games" / "llara"


def test_the_planted_rate_wins_and_is_trained_with_every_seed(search: Path, place: Path) -> None:
    found = json.loads((search / "search.json").read_text())
    best = {trial["rate"]: trial["hr1"] for trial in found["trials"]}
    assert best[1e-2] > best[1e-9]
    assert [seed["seed"] for seed in found["winner"]["seeds"]] == [0, 1]
    assert sorted(path.parent.name for path in search.glob("trials/*/tuned.json")) == ["0.01-0", "0.01-1", "1e-09-0"]
    assert "<svg" in (search / "trials.svg").read_text()
    client = Registry(f"sqlite:///{place}/runs/mlflow.db", "cprec", "cprec").client
    experiment = client.get_experiment_by_name("cprec")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in runs}
    assert set(parents) == {"small-Games-llara", "0.01-0", "0.01-1", "1e-09-0"}
    assert len({parent for name, parent in parents.items() if name != "small-Games-llara"}) == 1


def test_a_checkpoint_is_a_peft_directory_with_the_projector_beside_it(search: Path) -> None:
    uri = json.loads((search / "search.json").read_text())["winner"]["best"]["checkpoint"]
    checkpoint.verify(uri)
    assert (Path(uri) / "behaviour" / "behaviour.safetensors").is_file()
    AutoPeftModelForCausalLM.from_pretrained(Path(uri) / "adapter")


def test_an_interrupted_search_trains_what_is_left_and_no_more(search: Path, recipe: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in search.glob("trials/*/checkpoints/*/manifest.json")}
    whole = json.loads((search / "search.json").read_text())
    shutil.rmtree(search / "trials" / "0.01-1")
    (search / "search.json").unlink()
    told = jobs.run("tune_lr", recipe).stdout
    assert "1 of 2 trials to train" in told  # of the two seeds; the two rates are there
    assert json.loads((search / "search.json").read_text())["trials"] == whole["trials"]
    again = json.loads((search / "search.json").read_text())["winner"]["seeds"][1]
    assert again["history"] == whole["winner"]["seeds"][1]["history"]
    kept = {path: at for path, at in before.items() if path.exists()}
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items() if "0.01-1" not in str(path))
    assert "registered cprec-Games version 1" in told


def test_another_search_does_not_mix_with_it(search: Path, recipe: Path) -> None:
    told = jobs.run("tune_lr", recipe, "--finetune.epochs", "3", code=1).stderr
    assert "finetune" in told
    assert "--finetune.name" in told


def test_what_was_found_is_scored_beside_the_baselines(search: Path, recipe: Path, place: Path) -> None:
    told = jobs.run("evaluate", recipe).stdout
    assert all(name in told for name in ("base", "sasrec", "llara"))
    comparison = json.loads((place / "runs" / "small" / "evaluation" / "Games" / "comparison.json").read_text())
    reference, sasrec, llara = comparison["rows"]
    assert (reference["name"], sasrec["model"], llara["model"]) == ("base", "sasrec", "2 seeds")
    assert llara["over_seeds"]["n"] == 2
    assert sasrec["over_seeds"] is None
    assert 0 < llara["permutation_p"] <= 1
    assert llara["holm_p"] == llara["against"]["p"]
    seeds = [json.loads((place / "runs/small/evaluation/Games" / f"llara-seed{s}" / "metrics.json").read_text())["hr"]["1"] for s in (0, 1)]
    assert llara["metrics"]["hr"]["1"] == pytest.approx(sum(seeds) / 2)

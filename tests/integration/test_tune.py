"""The search of the learning rate for real and once: Tune, the engine, the registry. Small enough for seconds, so it says nothing of quality."""

import json
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM

from cprec.registry import Registry
from cprec.train import checkpoint
from tests.integration import jobs

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers under a name of the past


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def search(place: Path) -> Path:
    """A search from fresh weights. Returns its folder."""
    recipe = jobs.recipe(
        place,
        workers=1,
        simulate={"users": 60, "items_per_domain": 40, "domains_per_user": 3, "interactions_per_domain": 8},
        finetune={"start": "fresh", "epochs": 1, "global_batch": 16, "max_samples": 60, "validation_users": 20},
        search={"rates": [1e-9, 1e-2], "winner_seeds": 1},
        baseline={"max_epochs": 1, "size": 16},
    )
    jobs.run("build_corpus", recipe)
    assert "registered cprec-Games version 1" in jobs.run("tune_lr", recipe).stdout
    return place / "runs" / "small" / "finetune" / "Games" / "llara"


def test_the_rate_that_is_best_on_validation_wins(search: Path, place: Path) -> None:
    found = json.loads((search / "search.json").read_text())
    of = {trial["rate"]: trial["hr1"] for trial in found["trials"]}
    assert set(of) == {1e-9, 1e-2}
    assert of[found["winner"]["rate"]] == max(of.values())
    assert [seed["seed"] for seed in found["winner"]["seeds"]] == [0]
    assert sorted(path.parent.name for path in search.glob("trials/*/tuned.json")) == ["0.01-0", "1e-09-0"]
    assert "<svg" in (search / "trials.svg").read_text()
    client = Registry(f"sqlite:///{place}/runs/mlflow.db", "cprec", "cprec").client
    experiment = client.get_experiment_by_name("cprec")
    assert experiment
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in client.search_runs([experiment.experiment_id])}
    assert set(parents) == {"small-Games-llara", "0.01-0", "1e-09-0"}
    assert parents["0.01-0"] == parents["1e-09-0"] is not None


def test_a_checkpoint_is_a_peft_directory_with_the_projector_beside_it(search: Path) -> None:
    uri = json.loads((search / "search.json").read_text())["winner"]["best"]["checkpoint"]
    checkpoint.verify(uri)
    assert (Path(uri) / "behaviour" / "behaviour.safetensors").is_file()
    AutoPeftModelForCausalLM.from_pretrained(Path(uri) / "adapter")

"""The project's claim, on simulated shoppers, and the gate with real models.

In a domain with few interactions, a model that was pre-trained on other domains and then fine-tuned
(CPRec) ranks better than one that was only fine-tuned (LLaRA), and than SASRec. All get the same
samples; differences are tested over seeds and over users.

Learning rates and epochs were chosen on the validation split. docs/results.md has the larger run,
made with the jobs themselves.

The gate keeps a spoilt model from becoming the champion, and rolling back restores the champion.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.ray_session import ray_session
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe, to_yaml
from cprec.evaluation.significance import paired_t_test
from cprec.runs import checkpoint
from cprec.tracking.registry import Registry
from cprec.workflows import promote
from cprec.workflows.champion import roll_back, set_champion
from tests.integration import jobs

SEEDS = 3
LRS = {"cprec": 1e-3, "llara": 1e-2}
"""Learning rate of each model, the best on the validation split of the larger run."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The demo's recipe, with 200 samples of its held-out domain to fine-tune on."""
    folder = tmp_path_factory.mktemp("few")
    overrides = {
        "storage": f"{folder}/runs",
        "corpus": f"{folder}/corpus",
        "data.root": f"{folder}/shoppers",
    }
    demo = load_recipe(str(jobs.ROOT / "jobs" / "recipes" / "demo.yaml"), overrides)
    changes = {
        "finetune": demo.finetune.model_copy(
            update={"max_samples": 200, "validation_users": 60, "epochs": 3}
        ),
        "evaluate": demo.evaluate.model_copy(update={"max_users": 150}),
    }
    return demo.model_copy(update=changes)


@pytest.fixture(scope="module")
def trained(recipe: Recipe) -> dict[str, Any]:
    """The output of tests.experiments.few_worker."""
    path = Path(recipe.storage).parent / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    out = jobs.run_python(
        "-m",
        "tests.experiments.few_worker",
        path,
        str(SEEDS),
        *map(str, LRS.values()),
        environment=jobs.worker_environment(),
        timeout_s=900,
    )
    output: dict[str, Any] = json.loads(out.splitlines()[-1])
    return output


@pytest.mark.parametrize("rival", ["llara", "sasrec"])
def test_pre_training_helps_where_interactions_are_few(trained: dict[str, Any], rival: str) -> None:
    hits_by_model = {model: np.array(hits) for model, hits in trained["hits"].items()}
    hr1 = {model: hits.mean(axis=1).round(3).tolist() for model, hits in hits_by_model.items()}
    print(hr1)
    for axis in (1, 0):  # over seeds, and over users
        test = paired_t_test(
            hits_by_model["cprec"].mean(axis=axis), hits_by_model[rival].mean(axis=axis)
        )
        assert test.difference < 0, hr1
        assert test.p < 0.05, hr1


def test_the_gate_refuses_a_sabotaged_candidate_and_rolling_back_restores_the_champion(
    trained: dict[str, Any], recipe: Recipe, tmp_path: Path
) -> None:
    registry = Registry.from_recipe(recipe)
    run = registry.start_run(f"{recipe.storage}/{recipe.run}", recipe.run)
    with ray_session("local", 2):
        check_gate(registry, run, trained, recipe, tmp_path)


def check_gate(
    registry: Registry, run: str | None, trained: dict[str, Any], recipe: Recipe, folder: Path
) -> None:
    """Promotes the trained model, refuses a spoilt copy of it, and rolls back."""
    good = registry.register(trained["checkpoint"], {"base": trained["base"]}, run)
    assert promote.promote(recipe, registry, print, str(good))[1].promote
    bad = registry.register(sabotage(trained["checkpoint"], folder), {"base": trained["base"]}, run)
    number, decision = promote.promote(recipe, registry, print, str(bad))
    assert (number, decision.promote) == (bad, False)
    assert "gate.alpha: wanted no worse than the champion" in decision.reason
    set_champion(registry, bad)  # by hand, against the gate's advice
    assert roll_back(registry)[0] == good
    champion = registry.version_by_alias("champion")
    assert champion is not None
    assert champion.number == good


def sabotage(uri: str, folder: Path) -> str:
    """Copies a checkpoint and draws the signs of its adapter's weights anew."""
    shutil.copytree(Path(uri) / checkpoint.ADAPTER, folder / "files" / checkpoint.ADAPTER)
    file = folder / "files" / checkpoint.ADAPTER / "adapter_model.safetensors"
    torch.manual_seed(0)
    save_file(
        {name: w * torch.randn_like(w).sign() for name, w in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    copy = checkpoint.checkpoint_uri(f"{folder}/runs/sabotaged", checkpoint.CheckpointName(1, 0))
    checkpoint.commit(folder / "files", copy, checkpoint.read_ledger(uri))
    return copy

"""What the project is for, on simulated shoppers: where a domain has few interactions, a model that was pre-trained on other domains and then
fine-tuned (CPRec) ranks better than one that is only fine-tuned (LLaRA), and than SASRec, from the same samples; p over seeds.

Rates and epochs were chosen on the validation split (docs/downstream.md has the larger run, through the jobs themselves). And the gate with real
models on both sides of it: one that was spoilt does not become the champion, and the way back restores the one that was.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe, to_yaml
from cprec.evaluate.significance import paired_t_test
from cprec.runs import checkpoint
from cprec.tracking.registry import Registry
from cprec.workflows import promote
from tests.integration import jobs

SEEDS = 3
RATES = {"cprec": 1e-3, "llara": 1e-2}
"""By model, as the validation split of the larger run has it."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The demo's, with 200 samples of its held-out domain to fine-tune on."""
    place = tmp_path_factory.mktemp("few")
    places = {
        "storage": f"{place}/runs",
        "corpus": f"{place}/corpus",
        "data.root": f"{place}/shoppers",
    }
    demo = load_recipe(str(jobs.ROOT / "jobs" / "recipes" / "demo.yaml"), places)
    changes = {
        "finetune": demo.finetune.model_copy(
            update={"max_samples": 200, "validation_users": 60, "epochs": 3}
        ),
        "evaluate": demo.evaluate.model_copy(update={"max_users": 150}),
    }
    return demo.model_copy(update=changes)


@pytest.fixture(scope="module")
def trained(recipe: Recipe) -> dict[str, Any]:
    """What tests.integration.few_worker prints."""
    path = Path(recipe.storage).parent / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    command = [
        sys.executable,
        "-m",
        "tests.integration.few_worker",
        str(path),
        str(SEEDS),
        *map(str, RATES.values()),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{jobs.ROOT}:{jobs.ROOT / 'platform'}",
    }
    done = subprocess.run(
        command,
        cwd=jobs.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("rival", ["llara", "sasrec"])
def test_pre_training_helps_where_interactions_are_few(trained: dict[str, Any], rival: str) -> None:
    seen = {model: np.array(hits) for model, hits in trained["hits"].items()}  # [seeds, users]
    shown = {model: hits.mean(axis=1).round(3).tolist() for model, hits in seen.items()}
    print(shown)
    for axis in (1, 0):  # over seeds, and over users
        against = paired_t_test(seen["cprec"].mean(axis=axis), seen[rival].mean(axis=axis))
        assert against.difference < 0, shown
        assert against.p < 0.05, shown


@pytest.mark.usefixtures("one_cluster")
def test_the_gate_refuses_a_sabotaged_candidate_and_the_way_back_restores(
    trained: dict[str, Any], recipe: Recipe, tmp_path: Path
) -> None:
    registry = Registry.from_recipe(recipe)
    run = registry.start_run(f"{recipe.storage}/{recipe.run}", recipe.run)
    good = registry.register(trained["checkpoint"], {"base": trained["base"]}, run)
    assert promote.promote(recipe, registry, print)[1].promote
    bad = registry.register(
        sabotaged(trained["checkpoint"], tmp_path), {"base": trained["base"]}, run
    )
    registry.set_alias("candidate", bad)
    number, decision = promote.promote(recipe, registry, print)
    assert (number, decision.promote) == (bad, False)
    assert "worse at the level" in decision.reason
    promote.set_champion(registry, bad)  # by hand, against the gate's advice
    assert promote.roll_back(registry)[0] == good
    champion = registry.version_by_alias("champion")
    assert champion is not None
    assert champion.number == good


def sabotaged(uri: str, place: Path) -> str:
    """A checkpoint like this one, with the signs of its adapter's weights drawn anew."""
    shutil.copytree(Path(uri) / checkpoint.ADAPTER, place / "files" / checkpoint.ADAPTER)
    file = place / "files" / checkpoint.ADAPTER / "adapter_model.safetensors"
    torch.manual_seed(0)
    save_file(
        {name: w * torch.randn_like(w).sign() for name, w in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    copy = checkpoint.checkpoint_uri(f"{place}/runs/sabotaged", checkpoint.CheckpointName(1, 0))
    checkpoint.commit(place / "files", copy, checkpoint.read_ledger(uri))
    return copy

"""What the project is for, on simulated shoppers: where a domain has few interactions, a model that was pre-trained on other domains and then
fine-tuned (CPRec) ranks better than one that is only fine-tuned (LLaRA), and than SASRec, from the same samples; p over seeds.

Rates and epochs were chosen on the validation split (docs/downstream.md has the larger run). The jobs' own functions are called in this process.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cprec import promotion
from cprec.compare import Comparison, compare
from cprec.finetune import tune
from cprec.recipe import Recipe
from cprec.registry import Registry
from cprec.resolve import load
from tests.integration import jobs

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers under a name of the past

SEEDS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Pre-trained on two domains; 150 samples of a third."""
    place = tmp_path_factory.mktemp("few")
    path = jobs.recipe(
        place,
        data={"root": f"{place}/shoppers", "format": "simulated", "domains": ["Garden", "Office", "Sports"], "held_out": ["Games"]},
        simulate={"users": 800, "items_per_domain": 200},
        tiny={"hidden": 64, "layers": 2, "heads": 4},
        schedule={"lr_max": 1e-2, "segment_samples": 2048},
        train={"global_batch": 32, "max_samples": 2000},
        checkpoint={"every_samples": 4096},
        finetune={"max_samples": 150, "global_batch": 16, "validation_users": 60, "epochs": 3},
        search={"rates": [3e-3], "winner_seeds": SEEDS, "concurrent": 2},
        baseline={"batch": 16, "seeds": SEEDS},
        evaluate={"max_users": 200},
    )
    jobs.run("build_corpus", path)
    jobs.run("cpt", path)
    return load(str(path))


@pytest.fixture(scope="module")
def registry(recipe: Recipe) -> Registry:
    return Registry.of(recipe)


@pytest.fixture(scope="module")
def comparison(recipe: Recipe, registry: Registry) -> Comparison:
    alone = recipe.model_copy(update={"workers": 1})
    for start, rate in (("candidate", 3e-3), ("fresh", 1e-2)):
        changed = {"finetune": recipe.finetune.model_copy(update={"start": start}), "search": recipe.search.model_copy(update={"rates": (rate,)})}
        tune(alone.model_copy(update=changed), registry, print)
    return compare(recipe, registry, ["cprec", "llara", "sasrec", "candidate", "base"], print)


def test_pre_training_helps_where_interactions_are_few(comparison: Comparison) -> None:
    rows = {row.name: row for row in comparison.rows}
    shown = {name: (row.metrics["hr"]["1"], row.over_seeds and row.over_seeds.p) for name, row in rows.items()}
    print(json.dumps(shown))
    for rival in ("llara", "sasrec"):
        over_seeds, over_users = rows[rival].over_seeds, rows[rival].against
        assert over_seeds is not None, shown
        assert over_users is not None, shown
        assert over_seeds.n == SEEDS
        assert over_seeds.difference < 0, shown
        assert over_seeds.p < 0.05, shown
        assert over_users.p < 0.05, shown
    assert rows["candidate"].metrics["hr"]["1"] > rows["base"].metrics["hr"]["1"]


def test_the_gate_refuses_a_sabotaged_candidate_and_the_way_back_restores(
    recipe: Recipe, registry: Registry, comparison: Comparison, tmp_path: Path
) -> None:
    good = registry.alias("candidate")
    assert good is not None
    assert promotion.promote(recipe, registry, print)[1].promote
    sabotaged = _sabotaged(Path(good.checkpoint), tmp_path)
    bad = registry.register(str(sabotaged), {key: good.tags[key] for key in ("base", "base_revision") if key in good.tags}, good.run_id)
    registry.point("candidate", bad)
    number, decision = promotion.promote(recipe, registry, print)
    assert (number, decision.promote) == (bad, False)
    assert "worse at the level" in decision.reason
    promotion.crown(registry, bad)  # by hand, against the gate's advice
    assert promotion.roll_back(registry)[0] == good.number
    champion = registry.alias("champion")
    assert champion is not None
    assert champion.number == good.number


def _sabotaged(checkpoint: Path, place: Path) -> Path:
    """The same checkpoint with the signs of its adapter's weights drawn anew; its manifest is right."""
    copy = place / "runs" / "sabotaged" / "checkpoints" / checkpoint.name
    shutil.copytree(checkpoint, copy)
    file = copy / "adapter" / "adapter_model.safetensors"
    torch.manual_seed(0)
    save_file({name: w * torch.randn_like(w).sign() for name, w in load_file(file).items()}, file, metadata={"format": "pt"})
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["adapter/adapter_model.safetensors"] = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy

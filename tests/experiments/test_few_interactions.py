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
RATES = {"candidate": 1e-3, "fresh": 1e-2}
"""By what LoRA starts from, as the validation split of the larger run has it."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The demo, pre-trained; 200 samples of its held-out domain to fine-tune on."""
    place = tmp_path_factory.mktemp("few")
    places = {"storage": f"{place}/runs", "corpus": f"{place}/corpus", "data.root": f"{place}/shoppers"}
    options = [part for key, value in places.items() for part in (f"--{key}", value)]
    jobs.run("build_corpus", *options)
    jobs.run("cpt", *options)
    demo = load(str(jobs.ROOT / "jobs" / "recipes" / "demo.yaml"), places)
    changes = {
        "finetune": demo.finetune.model_copy(update={"max_samples": 200, "validation_users": 60, "epochs": 3}),
        "search": demo.search.model_copy(update={"seeds": SEEDS, "winner_seeds": SEEDS, "concurrent": 2}),
        "baseline": demo.baseline.model_copy(update={"seeds": SEEDS}),
        "evaluate": demo.evaluate.model_copy(update={"max_users": 150}),
    }
    return demo.model_copy(update=changes)


@pytest.fixture(scope="module")
def registry(recipe: Recipe) -> Registry:
    return Registry.of(recipe)


@pytest.fixture(scope="module")
def comparison(recipe: Recipe, registry: Registry) -> Comparison:
    for start, rate in RATES.items():
        changes = {
            "workers": 1,
            "finetune": recipe.finetune.model_copy(update={"start": start}),
            "search": recipe.search.model_copy(update={"rates": (rate,)}),
        }
        tune(recipe.model_copy(update=changes), registry, print)
    return compare(recipe, registry, ["cprec", "llara", "sasrec"], print)


def test_pre_training_helps_where_interactions_are_few(comparison: Comparison) -> None:
    shown = {row.name: (row.metrics["hr"]["1"], row.over_seeds) for row in comparison.rows}
    print(shown)
    assert [row.name for row in comparison.rows] == ["cprec", "llara", "sasrec"]
    for rival in comparison.rows[1:]:
        assert rival.over_seeds is not None, shown
        assert rival.against is not None, shown
        assert rival.over_seeds.n == SEEDS
        assert rival.over_seeds.difference < 0, shown
        assert rival.over_seeds.p < 0.05, shown
        assert rival.against.p < 0.05, shown


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

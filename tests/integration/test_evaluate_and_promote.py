"""From registered checkpoints to a champion: real corpus, real models, real Ray, real MLflow on SQLite."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.errors import CorpusError, RecipeError, RunError
from corpus.build import simulate_and_build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.downstream.scoring import load_model
from cprec.evaluate import predictions
from cprec.evaluate.metrics import compute_metrics
from cprec.model import adapter, backbone, tiny
from cprec.tracking.registry import Registry
from cprec.workflows import promote
from cprec.workflows.evaluate import compare_models, find_models, load_samples
from cprec.workflows.merge import export_model
from cprec.workflows.recommend import find_registered_model, read_candidate_titles, recommend

pytestmark = [
    pytest.mark.usefixtures("one_cluster"),
    pytest.mark.filterwarnings(
        "ignore:.is_gradient_checkpointing:FutureWarning"
    ),  # PEFT asks transformers under a name of the past
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Recipe:
    return validate_recipe(
        {
            "storage": f"{place}/runs",
            "corpus": f"{place}/corpus",
            "data": {
                "root": f"{place}/shoppers",
                "format": "simulated",
                "domains": ["Apparel", "Books"],
                "held_out": ["Games"],
            },
            "simulate": {
                "users": 120,
                "items_per_domain": 40,
                "domains_per_user": 2,
                "interactions_per_domain": 8,
            },
            "tiny": {"hidden": 32, "layers": 1, "language_steps": 60},
            "evaluate": {"max_users": 40},
        },
        "the test",
    )


@pytest.fixture(scope="module")
def corpus(recipe: Recipe) -> Corpus:
    return simulate_and_build(
        recipe.data, recipe.simulate, recipe.seed, recipe.corpus, lambda line: None
    )


@pytest.fixture(scope="module")
def registry(recipe: Recipe, corpus: Corpus, place: Path) -> Registry:
    """Two registered checkpoints of one run, both random LoRA adapters of the tiny base."""
    base = place / "base"
    tiny.build(corpus.read_titles(), recipe.tiny, recipe.seed, base)
    models = Registry.from_recipe(recipe)
    for seed in (1, 2):
        register(models, recipe, place, seed, 0.05)
    return models


def register(
    models: Registry, recipe: Recipe, place: Path, seed: int, spread: float, base: str = "base"
) -> int:
    """Register a checkpoint with a random adapter. spread: standard deviation of its weights; base: folder of its base. Returns its version."""
    base = str(place / base)
    network, _ = backbone.load(base, None, "fp32")
    tuned = adapter.attach(network, recipe.model, seed)
    weights = {
        name: torch.randn_like(weight) * spread
        for name, weight in adapter.trainable_parameters(tuned).items()
    }
    checkpoint = place / "runs" / "cpt" / "checkpoints" / f"{seed * 100:012d}-0"
    adapter.save(tuned, weights, checkpoint / "adapter", base, None)
    files = {
        path.relative_to(checkpoint).as_posix(): path.read_bytes()
        for path in checkpoint.rglob("*")
        if path.is_file()
    }
    manifest = {
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return models.register(
        str(checkpoint), {"base": base}, models.start_run(f"{place}/runs/cpt", "cpt")
    )


@pytest.fixture
def events(place: Path) -> Path:
    file = place / "runs" / "cpt" / "events.jsonl"
    file.write_text(json.dumps({"time": 1.0, "event": "run_finished", "samples": 200}) + "\n")
    return file


def test_metrics_can_be_recomputed_from_the_predictions(
    recipe: Recipe, registry: Registry, events: Path, place: Path
) -> None:
    seen = compare_models(recipe, registry, ["base", "1", "candidate"], print)
    assert [(row.name, row.model, row.against is None) for row in seen.rows] == [
        ("base", "base", True),
        ("1", "version-1", False),
        ("candidate", "version-2", False),
    ]
    folder = place / "runs" / "cpt" / "evaluation" / "Games"
    for row in seen.rows:
        table = pq.read_table(folder / row.model / "predictions.parquet")
        assert len(table) == 40
        again = compute_metrics(
            row.model, "Games", predictions.to_ranks(table), table["history_length"].to_numpy()
        )
        written = json.loads((folder / row.model / "metrics.json").read_text())
        assert written.pop("inputs")["split"] == "test"
        assert written == again == row.metrics
    _, _, samples = load_samples(recipe)
    assert table["sample_id"].to_pylist() == samples["sample_id"].to_pylist()
    assert [set(ranking) for ranking in table["ranking"].to_pylist()] == [
        set(c) for c in samples["candidates"].to_pylist()
    ]
    assert (np.diff(samples["sample_id"].to_numpy().view(np.uint64).astype(object)) > 0).all()
    assert json.loads(registry.version(2).tags["evaluation.Games"]) == seen.rows[2].metrics
    assert "candidate (version-2)" in (place / "runs" / "cpt" / "report.html").read_text()


def test_equal_inputs_are_not_scored_again(
    recipe: Recipe, registry: Registry, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare_models(recipe, registry, ["1"], print)
    # Would be called if it were scored again.
    monkeypatch.setattr("cprec.workflows.evaluate.ray_session", None)
    assert compare_models(recipe, registry, ["1"], print) == first
    fewer = recipe.model_copy(
        update={"run": "fewer", "evaluate": recipe.evaluate.model_copy(update={"max_users": 39})}
    )
    shutil.copytree(place / "runs" / "cpt" / "evaluation", place / "runs" / "fewer" / "evaluation")
    with pytest.raises(TypeError):
        compare_models(fewer, registry, ["1"], print)


def test_promotion_and_the_way_back(
    recipe: Recipe, registry: Registry, corpus: Corpus, events: Path
) -> None:
    with pytest.raises(RunError, match="no champion before"):
        promote.roll_back(registry)
    with pytest.raises(RunError, match=r"no champion yet; run jobs/promote\.py"):
        find_models(recipe, registry, ["champion"], corpus, print)
    with pytest.raises(RunError, match="no version 9; versions: 1, 2"):
        find_models(recipe, registry, ["base", "9"], corpus, print)
    registry.set_alias("candidate", 1)
    assert promote.promote(recipe, registry, print)[1].promote
    registry.set_alias("candidate", 2)
    version, decision = promote.promote(recipe, registry, print)
    assert (version, set(decision.numbers)) == (2, {"hr1", "n", "champion_hr1", "difference", "p"})
    promote.set_champion(
        registry, 2
    )  # whatever two random models were judged; repeating it changes nothing
    promote.set_champion(registry, 2)
    assert [
        v.number
        for v in (registry.version_by_alias("champion"), registry.version_by_alias("previous"))
        if v
    ] == [
        2,
        1,
    ]
    assert not promote.promote(recipe, registry, print)[1].promote
    assert promote.roll_back(registry)[0] == 1
    champion = registry.version_by_alias("champion")
    assert champion is not None
    assert champion.number == 1
    assert registry.version_by_alias("previous") is None
    decisions = [key for key in champion.tags if key.startswith("decision.")]
    assert len(decisions) == 2
    written = [json.loads(line) for line in events.read_text().splitlines()]
    assert [e["event"] for e in written] == ["run_finished", *["promotion_decided"] * 4]
    assert written[-2] == {
        **written[-2],
        "samples": 200,
        "version": 1,
        "promoted": True,
        "because": "rolled back from version 2",
    }


def test_generated_answers_are_kept_apart_from_scores(
    recipe: Recipe, registry: Registry, place: Path
) -> None:
    held = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(update={"mode": "constrained", "max_users": 6})
        }
    )
    row = compare_models(held, registry, ["1"], print).rows[0]
    assert row.metrics["mode"] == "constrained"
    assert row.metrics["valid_ratio"]["exact"] == 1.0
    folder = place / "runs" / "cpt" / "evaluation" / "Games"
    table = pq.read_table(folder / "version-1-constrained" / "predictions.parquet")
    assert predictions.to_metrics(table, "version-1", "Games", "constrained") == row.metrics
    assert all(len(ranking) == 5 for ranking in table["ranking"].to_pylist())
    assert (
        json.loads((folder / "comparison-constrained.json").read_text())["rows"][0]["name"] == "1"
    )


def test_the_gate_asks_for_candidates_as_answers(
    recipe: Recipe, registry: Registry, events: Path
) -> None:
    strict = {
        "evaluate": recipe.evaluate.model_copy(update={"max_users": 6}),
        "gate": recipe.gate.model_copy(update={"min_valid_ratio": 0.9}),
    }
    registry.set_alias("champion", 1)
    registry.set_alias("candidate", 2)
    _, decision = promote.promote(recipe.model_copy(update=strict), registry, print)
    assert not decision.promote
    assert decision.numbers["valid_ratio"] < 0.9
    champion = registry.version_by_alias("champion")
    assert champion is not None
    assert champion.number == 1


def test_the_gate_refuses_a_candidate_that_forgot_its_language(
    recipe: Recipe, registry: Registry, events: Path, place: Path
) -> None:
    """The base was taught a little; what the new version adds to its weights at random is 1,600 times what version 2 adds."""
    evaluate = {"max_users": 6, "text": "jobs/recipes/demo.txt"}
    strict = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(update=evaluate),
            "gate": recipe.gate.model_copy(update={"max_forgetting": 1.0}),
        }
    )
    champion = registry.version_by_alias("champion")
    assert champion is not None
    lost = register(registry, recipe, place, 3, 2.0)
    registry.set_alias("candidate", lost)
    version, decision = promote.promote(strict, registry, print)
    assert (version, decision.promote) == (lost, False)
    assert "gate.max_forgetting" in decision.reason
    assert decision.numbers["forgetting"] > 1
    with pytest.raises(RecipeError, match=r"name a plain text with evaluate\.text"):
        promote.promote(
            strict.model_copy(
                update={"evaluate": recipe.evaluate.model_copy(update={"max_users": 6})}
            ),
            registry,
            print,
        )
    after = registry.version_by_alias("champion")
    assert after is not None
    assert after.number == champion.number
    registry.set_alias("champion", 1)
    registry.set_alias("candidate", 2)
    kept = promote.promote(strict, registry, print)[1]
    assert kept.numbers["forgetting"] < 1
    assert "gate.max_forgetting" not in kept.reason


def test_a_ranking_for_a_person(
    recipe: Recipe, registry: Registry, corpus: Corpus, tmp_path: Path
) -> None:
    titles = corpus.read_titles()
    (tmp_path / "titles.txt").write_text("\n".join([*titles[:4], "", titles[0]]))
    candidates = read_candidate_titles(str(tmp_path / "titles.txt"))
    assert candidates == titles[:4]
    ranked = recommend(
        recipe, find_registered_model(registry, "models:/cprec/1"), titles[4:7], candidates
    )
    assert {title for title, _ in ranked} == set(candidates)
    assert sum(chance for _, chance in ranked) == pytest.approx(1)
    assert [chance for _, chance in ranked] == sorted(
        (chance for _, chance in ranked), reverse=True
    )
    for wrong in ("cprec", "models:/cprec", "models:/cprec@best", "models:/cprec@"):
        with pytest.raises(RecipeError, match="--model"):
            find_registered_model(registry, wrong)


def test_a_merged_directory_says_what_the_adapter_says(
    recipe: Recipe, registry: Registry, place: Path, tmp_path: Path
) -> None:
    model = find_registered_model(registry, "models:/cprec/1")
    export_model(recipe, model, str(tmp_path / "merged"))
    ids = torch.arange(20)[None]
    adapted, merged = (
        load_model(recipe, model)[0],
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    )
    with torch.no_grad():
        assert (adapted(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max() < 1e-4
        assert (
            adapted(input_ids=ids).logits
            - AutoModelForCausalLM.from_pretrained(place / "base")(input_ids=ids).logits
        ).abs().max() > 1e-2
    with pytest.raises(RunError, match="something already"):
        export_model(recipe, model, str(tmp_path / "merged"))


def test_what_is_not_there_is_named(recipe: Recipe, registry: Registry, place: Path) -> None:
    elsewhere = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"domain": "Garden"})}
    )
    with pytest.raises(
        CorpusError,
        match="domain Garden has no test samples; domains that have some: Apparel, Books, Games",
    ):
        compare_models(elsewhere, registry, ["1"], print)
    with pytest.raises(RunError, match="never completed"):
        compare_models(
            recipe, registry, ["1", f"{place}/runs/cpt/checkpoints/000000009900-0"], print
        )


def test_models_of_different_bases_are_compared(
    recipe: Recipe, registry: Registry, corpus: Corpus, place: Path
) -> None:
    """As when a base gives way to a larger one: each reads with its own tokenizer, and the gate can judge."""
    tiny.build(
        corpus.read_titles()[::2],
        recipe.tiny.model_copy(update={"hidden": 16, "vocabulary": 512, "language_steps": 0}),
        7,
        place / "larger",
    )
    other = register(registry, recipe, place, 4, 0.05, "larger")
    few = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"max_users": 6})}
    )
    rows = compare_models(few, registry, ["1", str(other)], print).rows
    assert [row.model for row in rows] == ["version-1", f"version-{other}"]
    assert rows[1].against is not None
    with pytest.raises(
        RunError,
        match="base takes the base of the versions beside it, which stand on different ones",
    ):
        compare_models(few, registry, ["base", "1", str(other)], print)

"""From registered checkpoints to a champion, on real models, Ray, and MLflow on SQLite."""

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

import cprec
from cluster.errors import CorpusError, RecipeError, RunError
from corpus.build import simulate_and_build
from corpus.sampling.source import Source
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.config.sections.finetuning import FinetuneSettings
from cprec.downstream.llara import build_plan
from cprec.downstream.scoring import load_model
from cprec.downstream.stored_model import Form
from cprec.encode.prompt import TABLE1
from cprec.evaluation import catalogue_predictions, predictions
from cprec.evaluation.gate import Decision
from cprec.model import adapter, backbone, tiny
from cprec.schedule.ledger import Ledger
from cprec.tracking.registry import Registry
from cprec.workflows import promote
from cprec.workflows.champion import roll_back, set_champion
from cprec.workflows.evaluate import compare_models
from cprec.workflows.evaluation.models import find_model, find_models
from cprec.workflows.evaluation.plan import load_samples
from cprec.workflows.merge import export, plan_export
from cprec.workflows.recommend import plan_request, rank

pytestmark = [
    pytest.mark.usefixtures("one_cluster"),
    # PEFT uses a deprecated name of transformers.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
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
            # The adapters are random, and the samples few.
            "gate": {"min_samples": 1, "above_chance": False},
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
    """A registry with two checkpoints of one run, both random LoRA adapters of the tiny base."""
    tiny.build(corpus.read_titles(), recipe.tiny, recipe.seed, place / "base", TABLE1)
    models = Registry.from_recipe(recipe)
    for seed in (1, 2):
        register(models, recipe, place, seed, 0.05)
    return models


def register(
    models: Registry, recipe: Recipe, place: Path, seed: int, spread: float, base: str = "base"
) -> int:
    """Registers a checkpoint with a random adapter, and returns its version.

    Args:
        models: The registry.
        recipe: The recipe, for the shape of the adapter.
        place: The folder of the base and of the runs.
        seed: Seed of the adapter; it also names the checkpoint.
        spread: Standard deviation of the adapter's weights.
        base: Name of the base's folder.
    """
    base_uri = str(place / base)
    network, _ = backbone.load(base_uri, None, "fp32")
    tuned = adapter.attach(network, recipe.model, seed)
    weights = {
        name: torch.randn_like(weight) * spread
        for name, weight in adapter.trainable_parameters(tuned).items()
    }
    checkpoint = place / "runs" / "cpt" / "checkpoints" / f"{seed * 100:012d}-0"
    adapter.save(tuned, weights, checkpoint / "adapter", base_uri, None, TABLE1)
    plan = build_plan(Source.parse("domain/Books"), 0, 60, 1e-3, FinetuneSettings(), 0)
    (checkpoint / "ledger.json").write_text(json.dumps(Ledger(plan, samples=50).to_json()))
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
        str(checkpoint), {"base": base_uri}, models.start_run(f"{place}/runs/cpt", "cpt")
    )


@pytest.fixture
def events(place: Path) -> Path:
    """The events of the run, which has finished."""
    file = place / "runs" / "cpt" / "events.jsonl"
    file.write_text(json.dumps({"time": 1.0, "event": "run_finished", "samples": 200}) + "\n")
    return file


def test_metrics_can_be_recomputed_from_the_predictions(
    recipe: Recipe, registry: Registry, events: Path, place: Path
) -> None:
    comparison = compare_models(recipe, registry, ["base", "1", "candidate"], print)
    assert [(row.name, row.model, row.against is None) for row in comparison.rows] == [
        ("base", "base", True),
        ("1", "version-1", False),
        ("candidate", "version-2", False),
    ]
    folder = place / "runs" / "cpt" / "evaluation" / "Games"
    for row in comparison.rows:
        table = pq.read_table(folder / row.model / "predictions.parquet")
        assert len(table) == 40
        recomputed = predictions.to_metrics(table, row.model, "Games", "score")
        stored = json.loads((folder / row.model / "metrics.json").read_text())
        assert stored.pop("inputs")["split"] == "test"
        assert stored == recomputed == row.metrics
    _, _, samples = load_samples(recipe)
    assert table["sample_id"].to_pylist() == samples["sample_id"].to_pylist()
    assert [set(ranking) for ranking in table["ranking"].to_pylist()] == [
        set(c) for c in samples["candidates"].to_pylist()
    ]
    assert (np.diff(samples["sample_id"].to_numpy().view(np.uint64).astype(object)) > 0).all()
    assert json.loads(registry.version(2).tags["evaluation.Games"]) == {
        **comparison.rows[2].metrics,
        "split": "test",
        "corpus_version": 0,
        "chance": comparison.chance,
    }
    hr1 = comparison.rows[2].metrics["hr"]["1"]
    described = registry.client.get_model_version("cprec", "2").description
    assert f"| Games | test | 0 | 40 | {hr1:.4f} (" in str(described)
    assert "candidate (version-2)" in (place / "runs" / "cpt" / "report.html").read_text()


def test_equal_inputs_are_not_scored_again(
    recipe: Recipe, registry: Registry, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare_models(recipe, registry, ["1"], print)
    # Scoring would call it, and fail.
    monkeypatch.setattr("cprec.workflows.evaluate.ray_session", None)
    again = compare_models(recipe, registry, ["1"], print)
    assert again.rows == first.rows
    assert again.time > first.time  # both are kept
    assert len([*(place / "runs/cpt/evaluation/Games/comparisons/1").iterdir()]) == 2
    fewer = recipe.model_copy(
        update={"run": "fewer", "evaluate": recipe.evaluate.model_copy(update={"max_users": 39})}
    )
    shutil.copytree(place / "runs" / "cpt" / "evaluation", place / "runs" / "fewer" / "evaluation")
    with pytest.raises(TypeError):
        compare_models(fewer, registry, ["1"], print)


def test_python_gets_a_comparison_as_a_frame(recipe: Recipe, registry: Registry) -> None:
    comparison = compare_models(recipe, registry, ["base", "1", "candidate"], print)
    frame = cprec.evaluate(recipe, ["base", "1", "candidate"], "Games")
    assert frame["model"].to_list() == ["base", "1", "candidate"]
    for row, model in zip(frame.iter_rows(named=True), comparison.rows, strict=True):
        assert (row["version"], row["n"], row["domain"]) == (model.model, 40, "Games")
        assert row["hr@1"] == model.metrics["hr"]["1"]
        assert row["ndcg@5"] == model.metrics["ndcg"]["5"]
        assert row["p"] == (None if model.against is None else model.against.p)
        assert row["low"] == (None if model.against is None else model.against.low)


def test_promotion_and_rollback(
    recipe: Recipe, registry: Registry, corpus: Corpus, events: Path
) -> None:
    with pytest.raises(RunError, match="no champion before"):
        roll_back(registry)
    with pytest.raises(RunError, match=r"no champion yet; run jobs/promote\.py"):
        find_models(recipe, registry, ["champion"], corpus)
    with pytest.raises(RunError, match="no version 9; versions: 1, 2"):
        find_models(recipe, registry, ["base", "9"], corpus)
    assert cprec.promote(recipe, "1")[:2] == (1, True)
    lines: list[str] = []
    version, decision = promote.promote(recipe, registry, lines.append)
    assert (version, set(decision.numbers)) == (
        2,
        {"hr1", "n", "chance", "champion_hr1", "difference", "p"},
    )
    assert lines[0] == (
        "candidate: version 2 of cprec, from run cpt; champion: version 1 of cprec, from run cpt"
    )
    assert [line.split(": ")[1] for line in lines if line.startswith(("passed", "REFUSED"))] == [
        "gate.min_samples",
        "gate.alpha",
    ]
    # The models are random, so the decision may be either. Setting it twice changes nothing.
    set_champion(registry, 2)
    set_champion(registry, 2)
    aliases = [registry.version_by_alias(alias) for alias in ("champion", "previous")]
    assert [version.number for version in aliases if version] == [2, 1]
    assert promote.promote(recipe, registry, print)[1] == Decision(True, "it was before")
    assert roll_back(registry)[0] == 1
    champion = registry.version_by_alias("champion")
    assert champion is not None
    assert champion.number == 1
    assert registry.version_by_alias("previous") is None
    decisions = [key for key in champion.tags if key.startswith("decision.")]
    assert len(decisions) == 2
    recorded = [json.loads(line) for line in events.read_text().splitlines()]
    assert [e["event"] for e in recorded] == ["run_finished", *["promotion_decided"] * 4]
    assert recorded[-2] == {
        **recorded[-2],
        "samples": 200,
        "version": 1,
        "promoted": True,
        "because": "rolled back from version 2",
    }


def test_a_bare_adapter_becomes_a_version_and_goes_before_the_gate(
    recipe: Recipe, registry: Registry, place: Path
) -> None:
    folder = shutil.copytree(
        place / "runs/cpt/checkpoints/000000000100-0/adapter", place / "elsewhere"
    )
    few = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(update={"max_users": 8}),
            "mlflow": recipe.mlflow.model_copy(update={"model": "bare"}),
        }
    )
    bare = Registry.from_recipe(few)
    number, decision = promote.promote(few, bare, print, str(folder))
    assert (number, decision.promote) == (1, True)
    champion = bare.version_by_alias("champion")
    assert champion is not None
    assert champion.checkpoint == str(folder)
    assert champion.tags["base"] == str(place / "base")
    assert champion.tags["trained_on"] == ""
    assert promote.promote(few, bare, print, str(folder))[0] == 1
    probe = torch.arange(20)[None]
    with torch.inference_mode():
        logits = [
            load_model(few, find_model(few, models, name))[0](input_ids=probe).logits
            for models, name in ((registry, "1"), (bare, "champion"))
        ]
    assert torch.equal(*logits)


def test_generated_answers_and_scores_are_stored_apart(
    recipe: Recipe, registry: Registry, place: Path
) -> None:
    constrained = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(update={"mode": "constrained", "max_users": 6})
        }
    )
    row = compare_models(constrained, registry, ["1"], print).rows[0]
    assert row.metrics["mode"] == "constrained"
    assert row.metrics["valid_ratio"]["exact"] == 1.0
    folder = place / "runs" / "cpt" / "evaluation" / "Games"
    table = pq.read_table(folder / "version-1-constrained" / "predictions.parquet")
    assert predictions.to_metrics(table, "version-1", "Games", "constrained") == row.metrics
    assert all(len(ranking) == 5 for ranking in table["ranking"].to_pylist())
    [kept] = (folder / "comparisons" / "1_constrained").iterdir()
    assert json.loads(kept.read_text())["rows"][0]["name"] == "1"


def test_the_gate_refuses_answers_that_are_no_candidates(
    recipe: Recipe, registry: Registry, events: Path
) -> None:
    strict = {
        "evaluate": recipe.evaluate.model_copy(update={"max_users": 6}),
        "gate": recipe.gate.model_copy(update={"min_valid_ratio": 0.9}),
    }
    registry.set_alias("champion", 1)
    _, decision = promote.promote(recipe.model_copy(update=strict), registry, print, "2")
    assert not decision.promote
    assert decision.numbers["valid_ratio"] < 0.9
    champion = registry.version_by_alias("champion")
    assert champion is not None
    assert champion.number == 1


def test_the_gate_refuses_a_candidate_that_forgot_its_language(
    recipe: Recipe, registry: Registry, events: Path, place: Path
) -> None:
    """The new version adds random weights to its base that are 1,600 times those of version 2."""
    evaluate = {"max_users": 6, "text": "jobs/recipes/demo.txt"}
    strict = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(update=evaluate),
            "gate": recipe.gate.model_copy(update={"max_forgetting": 1.0}),
        }
    )
    champion = registry.version_by_alias("champion")
    assert champion is not None
    forgetful = register(registry, recipe, place, 3, 2.0)
    version, decision = promote.promote(strict, registry, print)
    assert (version, decision.promote) == (forgetful, False)
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
    _, decision = promote.promote(strict, registry, print, "2")
    assert decision.numbers["forgetting"] < 1
    assert "gate.max_forgetting" not in decision.reason


def test_recommend_ranks_the_candidates_of_one_history(
    recipe: Recipe, registry: Registry, corpus: Corpus, tmp_path: Path
) -> None:
    titles = corpus.read_titles()
    (tmp_path / "titles.txt").write_text("\n".join([*titles[:4], "", titles[0]]))
    model = find_model(recipe, registry, "models:/cprec/1")
    request = plan_request(recipe, model, titles[4:7], str(tmp_path / "titles.txt"))
    candidates = request.candidates
    assert candidates == titles[:4]
    ranked = rank(recipe, model, request, print)
    assert {title for title, _ in ranked} == set(candidates)
    probabilities = [probability for _, probability in ranked]
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    for name in ("cprec", "models:/cprec", "models:/cprec@best", "models:/cprec@"):
        with pytest.raises(RecipeError, match="give candidate"):
            find_model(recipe, registry, name)


def test_exports_are_loaded_by_transformers_with_the_logits_of_base_and_adapter(
    recipe: Recipe, registry: Registry, place: Path, tmp_path: Path
) -> None:
    model = find_model(recipe, registry, "models:/cprec/1")
    out = {form: str(tmp_path / form.name) for form in (Form.MERGED, Form.ADAPTER)}
    for form, uri in out.items():
        export(plan_export(recipe, registry, model, uri, form=form))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected, merged, adapted, base = (
            network(input_ids=ids).logits
            for network in (
                load_model(recipe, model)[0],
                AutoModelForCausalLM.from_pretrained(out[Form.MERGED]),
                AutoPeftModelForCausalLM.from_pretrained(out[Form.ADAPTER]),
                AutoModelForCausalLM.from_pretrained(place / "base"),
            )
        )
    assert torch.equal(expected, adapted)
    assert (expected - merged).abs().max() < 1e-4
    assert (expected - base).abs().max() > 1e-2
    for form, uri in out.items():
        card = ModelCard.load(f"{uri}/README.md")
        assert card.data.get("library_name") == ("transformers" if form == Form.MERGED else "peft")
        assert "# cprec version 1" in card.text
        assert "| domain | Books | 0 | 50 |" in card.text
        with pytest.raises(RunError, match="something already"):
            plan_export(recipe, registry, model, uri)


def test_the_days_of_a_split_by_time_are_scored_apart(
    recipe: Recipe, registry: Registry, place: Path
) -> None:
    everybody = recipe.evaluate.model_copy(update={"max_users": None})
    _, _, samples = load_samples(recipe.model_copy(update={"evaluate": everybody}))
    times = sorted(samples["timestamp"].to_pylist())
    days = [f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d}" for time in times]
    newest = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"from_day": days[-10]})}
    )
    comparison = compare_models(newest, registry, ["base"], print)
    assert comparison.days == f"{days[-10]} on"
    assert comparison.name.startswith(f"base_{days[-10]}")
    assert comparison.rows[0].metrics["n"] == len([d for d in days if d >= days[-10]]) < 40
    folder = place / "runs" / "cpt" / "evaluation" / "Games" / f"base-{days[-10]}-on"
    assert json.loads((folder / "metrics.json").read_text())["inputs"]["days"] == comparison.days
    early = recipe.evaluate.model_copy(update={"from_day": "1970-01-02"})
    refused = recipe.model_copy(update={"evaluate": early})
    with pytest.raises(RunError, match="1 was trained on interactions up to"):
        compare_models(refused, registry, ["base", "1"], print)


def test_the_whole_catalogue_is_ranked_apart_from_the_candidates_of_samples(
    recipe: Recipe, registry: Registry, place: Path, events: Path
) -> None:
    evaluate = {"candidates": "catalogue", "max_users": 12, "retrieve_k": 6}
    whole = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(update=evaluate),
            "baseline": recipe.baseline.model_copy(
                update={"seeds": 1, "size": 8, "max_epochs": 3, "patience_steps": 0}
            ),
        }
    )
    tag = registry.version(1).tags["evaluation.Games"]
    lines: list[str] = []
    names = ["base", "1", "sasrec", "popularity"]
    comparison = compare_models(whole, registry, names, lines.append)
    assert (comparison.mode, comparison.measure) == ("catalogue", "HR@10")
    assert comparison.chance == 1 / 40
    assert comparison.name == "base_1_sasrec_popularity_catalogue"
    assert [line for line in lines if line.startswith("item vectors")] == [
        "item vectors: 40 of 40 titles have to be embedded"
    ]
    folder = place / "runs" / "cpt" / "evaluation" / "Games"
    tables = {}
    for row in comparison.rows:
        tables[row.name] = pq.read_table(folder / f"{row.model}-catalogue" / "predictions.parquet")
        recomputed = catalogue_predictions.to_metrics(tables[row.name], row.model, "Games")
        assert recomputed == row.metrics
        assert row.metrics["recall"]["50"] == row.metrics["recall"]["100"] == 1.0
    base, version = tables["base"], tables["1"]
    # Both rank the same items, which are none of the history.
    assert base["retrieved_rank"] == version["retrieved_rank"]
    assert [set(x) for x in base["ranking"].to_pylist()] == [
        set(x) for x in version["ranking"].to_pylist()
    ]
    assert base["scores"] != version["scores"]
    _, _, samples = load_samples(whole)
    for history, ranking in zip(
        samples["history"].to_pylist(), base["ranking"].to_pylist(), strict=True
    ):
        assert len(set(ranking) - set(history)) == 6
    # Nothing that compares versions by the candidates of samples sees it.
    assert registry.version(1).tags["evaluation.Games"] == tag
    assert "recall@100" in (place / "runs" / "cpt" / "report.html").read_text()
    judged = promote.plan_promotion(whole, registry, "2", lines.append).comparison
    assert judged.ranking is None
    assert judged.chance == pytest.approx(0.05)
    again = compare_models(whole, registry, names, lines.append)
    assert again.rows == comparison.rows
    assert sum(line.startswith("scoring base") for line in lines) == 1


def test_a_missing_domain_or_checkpoint_is_named(
    recipe: Recipe, registry: Registry, place: Path
) -> None:
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
    """A base may be replaced by a larger one: each model is scored with its own tokenizer."""
    tiny.build(
        corpus.read_titles()[::2],
        recipe.tiny.model_copy(update={"hidden": 16, "vocabulary": 512, "language_steps": 0}),
        7,
        place / "larger",
        TABLE1,
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

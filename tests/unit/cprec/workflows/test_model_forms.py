"""A base, a bare adapter and a checkpoint are models like a version, at every door."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RecipeError, RunError
from corpus.store.commits import Commit
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.encode.prompt import BRACES, TABLE1
from cprec.runs.run_planning import create_run_plan
from cprec.tracking.registry import Registry
from cprec.workflows.evaluate import _prediction_inputs
from cprec.workflows.evaluation.models import find_model
from cprec.workflows.evaluation.plan import plan_evaluation
from cprec.workflows.finetune import plan_search
from cprec.workflows.merge import export, plan_export
from cprec.workflows.pretrain import preview
from cprec.workflows.pretraining.prepare import resolve_start
from cprec.workflows.promote import plan_promotion
from cprec.workflows.recommend import plan_request, rank
from tests.unit.cprec.ranking import stored_models
from tests.unit.cprec.ranking.stored_models import Place

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return stored_models.write(tmp_path_factory.mktemp("forms"), 60)


@pytest.fixture(scope="module")
def registry(place: Place) -> Registry:
    return Registry(f"sqlite:///{place.folder}/mlflow.db", "cprec", "cprec")


@pytest.fixture(scope="module")
def adapter(place: Place) -> str:
    """A PEFT directory without anything of a run, which names no base."""
    return write_adapter(place, "given", None)


def write_adapter(place: Place, name: str, base: str | None) -> str:
    """Writes the adapter of the text-only model with another name of its base."""
    folder = shutil.copytree(f"{place.text}/adapter", place.folder / name)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def with_keys(place: Place, **keys: Any) -> Recipe:
    """Returns the recipe of the place with other values of some keys."""
    values = place.recipe.model_dump(mode="json")
    for key, value in {"evaluate__domain": "A", "finetune__domain": "A", **keys}.items():
        section, _, name = key.rpartition("__")
        (values[section] if section else values)[name] = value
    return validate_recipe(values, "the test")


@pytest.mark.parametrize("form", ["base", "adapter", "checkpoint"])
def test_every_door_takes_every_form(
    place: Place, registry: Registry, adapter: str, form: str, tmp_path: Path
) -> None:
    name = {"base": "base", "adapter": adapter, "checkpoint": place.text}[form]
    base = str(place.folder / "base")
    recipe = with_keys(place)
    model = find_model(recipe, registry, name)
    assert (model.base, model.checkpoint) == (base, None if form == "base" else name)

    assert plan_evaluation(recipe, registry, [name], print).models == [model]

    (tmp_path / "titles.txt").write_text("oak lamp\nred mug\n")
    assert plan_request(recipe, model, ["steel chair"], str(tmp_path / "titles.txt"))
    assert plan_export(recipe, registry, model, str(tmp_path / "merged")).model == model

    lines: list[str] = []
    promotion = plan_promotion(recipe, registry, name, lines.append)
    assert promotion.candidate is None
    assert "which becomes a version of cprec; champion: none yet" in lines[0]
    assert [m.checkpoint or m.base for m in promotion.comparison.models] == [
        base if form == "base" else name
    ]

    tuning = plan_search(with_keys(place, finetune__start=name), registry, print)
    assert (tuning.base, tuning.start_checkpoint) == (base, model.checkpoint)
    assert tuning.name == ("llara" if form == "base" else "cprec")

    lines.clear()
    started = resolve_start(with_keys(place, continue_from=name, run="next"))
    assert started.continue_from == model.checkpoint
    preview(started, place.corpus, (), lines.append)
    assert lines[-1].startswith("would run in ")


def test_two_names_of_one_model_are_compared_once_and_either_retrieves(
    place: Place, registry: Registry
) -> None:
    first, second = place.text, f"file://{place.text}"
    catalogue = {"evaluate__candidates": "catalogue", "retrieval__model": second}
    lines: list[str] = []
    for names in ([first, second, "base"], [second, first, "base"]):
        plan = plan_evaluation(with_keys(place, **catalogue), registry, names, lines.append)
        assert [model.name for model in plan.models] == [names[0], "base"]
        assert f"  {names[1]}: the same model as {names[0]}, compared once" in lines
        assert plan.ranking
        assert plan.ranking.catalogue.model.checkpoint == first


def test_a_plan_of_its_own_begins_with_a_bare_adapter(place: Place, adapter: str) -> None:
    from_base = create_run_plan(with_keys(place), place.corpus)
    from_adapter = create_run_plan(with_keys(place, continue_from=adapter), place.corpus)
    assert from_adapter.parent == adapter
    assert from_adapter.plan == from_base.plan
    with pytest.raises(RunError, match=r"given: a bare adapter, which has no plan"):
        create_run_plan(with_keys(place, continue_from=adapter, branch=True), place.corpus)


def test_an_adapter_says_which_base_it_stands_on(place: Place, registry: Registry) -> None:
    """The key counts where the adapter names none, one that is not there, or the same one moved."""
    other = shutil.copytree(place.folder / "base", place.folder / "other-base")
    moved = shutil.copytree(place.folder / "base", place.folder / "moved" / "base")
    own = str(place.folder / "base")
    named = {
        str(other): str(other),
        str(place.folder / "gone"): own,
        "SmolLM2-135M": own,
        str(moved): own,
    }
    for number, (name, expected) in enumerate(named.items()):
        uri = write_adapter(place, f"naming-{number}", name)
        assert find_model(with_keys(place), registry, uri).base == expected


def test_each_model_is_scored_in_the_template_that_it_was_trained_in(
    place: Place, registry: Registry, tmp_path: Path
) -> None:
    """Weights that name none are of an earlier release, which had braces only."""
    earlier = write_adapter(place, "earlier", None)
    (Path(earlier) / "prompt.json").unlink()
    recipe = with_keys(place)
    names = ["base", place.text, place.hybrid, earlier]
    plan = plan_evaluation(recipe, registry, names, print)
    assert place.corpus.prompt_template == "table1"
    assert [model.template.name for model in plan.models] == ["table1"] * 3 + ["braces"]
    inputs = [_prediction_inputs(plan, model) for model in plan.models]
    assert [values.get("prompt_template") for values in inputs] == ["table1"] * 3 + [None]
    # Another corpus at the same place, such as one that was removed and built anew.
    rebuilt = Corpus(
        place.corpus.uri,
        place.corpus.version,
        (Commit(0, {"fingerprint": "another"}, (), frozenset(), "", 0),),
    )
    assert _prediction_inputs(replace(plan, corpus=rebuilt), plan.models[0]) != inputs[0]

    merged = str(tmp_path / "merged" / "earlier")
    export(plan_export(recipe, registry, find_model(recipe, registry, earlier), merged))
    assert find_model(recipe, registry, merged).template == BRACES
    (Path(merged) / "prompt.json").unlink()  # as earlier releases exported it
    assert find_model(recipe, registry, merged).template == BRACES
    (Path(merged) / "README.md").unlink()
    assert find_model(recipe, registry, merged).template == TABLE1  # a base, as any other
    exported_base = str(tmp_path / "exported" / "base")
    export(plan_export(recipe, registry, find_model(recipe, registry, "base"), exported_base))
    assert find_model(recipe, registry, exported_base).template == TABLE1  # still a base

    rankings = []
    (tmp_path / "titles.txt").write_text("oak lamp\nred mug\n")
    for model in (plan.models[1], replace(plan.models[1], prompt_template="braces")):
        request = plan_request(recipe, model, ["steel chair"], str(tmp_path / "titles.txt"))
        rankings.append(rank(recipe, model, request, print))
    assert rankings[0] != rankings[1]


def test_training_follows_what_it_starts_from(place: Place, registry: Registry) -> None:
    earlier = write_adapter(place, "followed", None)
    (Path(earlier) / "prompt.json").unlink()
    lines: list[str] = []
    tuning = plan_search(with_keys(place, finetune__start=earlier), registry, lines.append)
    assert tuning.template == BRACES
    assert f"in the template braces, in which {earlier} was trained; the corpus has" in lines[1]
    lines.clear()
    preview(with_keys(place, continue_from=earlier, run="after"), place.corpus, (), lines.append)
    assert "prompts are in the template braces" in lines[0]
    assert create_run_plan(with_keys(place), place.corpus).template == TABLE1


def test_a_base_that_is_an_exported_model_keeps_its_template(
    place: Place, registry: Registry, tmp_path: Path
) -> None:
    earlier = write_adapter(place, "exported", None)
    (Path(earlier) / "prompt.json").unlink()
    merged = str(tmp_path / "merged")
    model = find_model(with_keys(place), registry, earlier)
    export(plan_export(with_keys(place), registry, model, merged))
    recipe = with_keys(place, model__base=merged)
    assert find_model(recipe, registry, "base").template == BRACES
    assert create_run_plan(recipe, place.corpus).template == BRACES
    for start, keys in (("fresh", {"model__base": merged}), (merged, {})):
        lines: list[str] = []
        plan_search(with_keys(place, finetune__start=start, **keys), registry, lines.append)
        assert f"in the template braces, in which {merged} was trained" in lines[1]


@pytest.mark.parametrize(
    ("adapter_kind", "words"), [("lora", "LoRA from fresh weights"), ("full", "all weights from")]
)
def test_a_search_says_what_it_trains(
    place: Place, registry: Registry, adapter_kind: str, words: str
) -> None:
    lines: list[str] = []
    recipe = with_keys(place, finetune__start="fresh", model__adapter=adapter_kind)
    plan_search(recipe, registry, lines.append)
    assert f"; {words}" in lines[0]
    assert str(place.folder / "base") in lines[0]


def test_what_pre_training_cannot_begin_with_is_refused(
    place: Place, adapter: str, tmp_path: Path
) -> None:
    def start(name: str, **keys: Any) -> Recipe:
        return resolve_start(with_keys(place, continue_from=name, **keys))

    with pytest.raises(RecipeError, match="continue_from champion: it may stand for another"):
        start("champion")
    with pytest.raises(
        RecipeError, match=r"a whole model, which is a base: give it as model\.base"
    ):
        start(str(place.folder / "base"))
    with pytest.raises(RunError, match=r"no version 7; versions: none yet"):
        start("7")
    with pytest.raises(RunError, match=r"model.lora_rank: 8 in the checkpoint, 4 in this recipe"):
        preview(start(adapter, model__lora_rank=4), place.corpus, (), print)
    away = shutil.copytree(adapter, tmp_path / "away")
    (away / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="no weights to begin with"):
        preview(start(str(away)), place.corpus, (), print)

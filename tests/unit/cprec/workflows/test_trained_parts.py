"""A part of a base's weights, or a soft prompt, is a model wherever one is named."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.errors import RecipeError, RunError
from cprec.config.recipe import Recipe
from cprec.config.sections.model import ModelSettings
from cprec.downstream.domain import Domain
from cprec.downstream.stored_model import Form
from cprec.encode.prompt import TABLE1
from cprec.encode.tokens import TitleEncoder
from cprec.model.adapter_config import require_matching_adapter
from cprec.ranking.ranker import Ranker
from cprec.runs import checkpoint
from cprec.runs.run_planning import create_run_plan
from cprec.tracking.registry import Registry
from cprec.workflows.evaluation.models import find_model
from cprec.workflows.finetune import plan_search
from cprec.workflows.merge import export, plan_export
from tests.unit.cprec.ranking import stored_models
from tests.unit.cprec.ranking.stored_models import Place
from tests.unit.cprec.workflows.test_model_forms import with_keys

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

Kind = Literal["partial", "prompt"]
SOFT_TOKENS = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return stored_models.write(tmp_path_factory.mktemp("parts"), 30)


@pytest.fixture(scope="module")
def registry(place: Place) -> Registry:
    return Registry(f"sqlite:///{place.folder}/mlflow.db", "cprec", "cprec")


def model_settings(kind: str) -> ModelSettings:
    return ModelSettings.model_validate(
        {"adapter": kind, "last_layers": 1, "soft_tokens": SOFT_TOKENS}
    )


@pytest.fixture(scope="module")
def checkpoints(place: Place) -> dict[str, str]:
    return {
        kind: stored_models.write_checkpoint(
            place.folder, place.corpus, kind, model=model_settings(kind)
        )
        for kind in ("partial", "prompt")
    }


def recipe_of(place: Place, kind: str, **keys: Any) -> Recipe:
    return with_keys(
        place,
        model__adapter=kind,
        model__last_layers=1,
        model__soft_tokens=SOFT_TOKENS,
        **keys,
    )


def rank(recipe: Recipe, registry: Registry, uri: str, domain: Domain) -> np.ndarray:
    """Returns the scores of twenty candidates."""
    ranker = Ranker.load(recipe, find_model(recipe, registry, uri), print, domain)
    items = domain.item_indices.tolist()
    [ranking] = ranker.rank([ranker.encode_items(items[:4], items[9:29])])
    scores = np.empty(20)
    scores[ranking.order] = ranking.scores
    return scores


@torch.inference_mode()
def score_alone(network: Any, tokenizer: Any, domain: Domain) -> np.ndarray:
    """Returns the same scores, of each answer alone, by a model that others can load."""
    items = domain.item_indices.tolist()
    encoder = TitleEncoder(tokenizer, 4096, TABLE1)
    titles = [domain.titles[i] for i in items]
    prompt, _ = encoder.encode_prompt(titles[:4], titles[9:29], 0)
    scores = []
    for title in titles[9:29]:
        answer = encoder.encode_answer(title)
        ids = torch.tensor([prompt + answer])
        logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        found = logits[-len(answer) - 1 : -1].log_softmax(-1)
        scores.append(float(found[range(len(answer)), answer].sum()))
    return np.array(scores)


@pytest.mark.parametrize("kind", ["partial", "prompt"])
def test_it_ranks_as_what_others_load(
    place: Place, registry: Registry, checkpoints: dict[str, str], kind: Kind, tmp_path: Path
) -> None:
    recipe, uri = with_keys(place), checkpoints[kind]
    domain = Domain.from_corpus(place.corpus, "A")
    scores = rank(recipe, registry, uri, domain)
    assert abs(scores - rank(recipe, registry, "base", domain)).max() > 0.1
    out, base = tmp_path / "exported", str(place.folder / "base")
    model = find_model(recipe, registry, uri)
    if kind == "partial":
        with pytest.raises(RecipeError, match="has no PEFT adapter; export it merged"):
            plan_export(recipe, registry, model, str(out), form=Form.ADAPTER)
        export(plan_export(recipe, registry, model, str(out)))
        network: Any = AutoModelForCausalLM.from_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(out)
    else:
        with pytest.raises(RecipeError, match=r"a soft prompt of 5 embeddings.*with --adapter"):
            plan_export(recipe, registry, model, str(out))
        export(plan_export(recipe, registry, model, str(out), form=Form.ADAPTER))
        network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(out))
        tokenizer = AutoTokenizer.from_pretrained(base)
        assert "A soft prompt of 5 embeddings" in (out / "README.md").read_text()
    np.testing.assert_allclose(score_alone(network.eval(), tokenizer, domain), scores, atol=1e-3)
    np.testing.assert_allclose(rank(recipe, registry, str(out), domain), scores, atol=1e-3)


@pytest.mark.parametrize("kind", ["partial", "prompt"])
def test_it_stands_on_the_base_that_it_names(
    place: Place, registry: Registry, checkpoints: dict[str, str], kind: Kind, tmp_path: Path
) -> None:
    other = shutil.copytree(place.folder / "base", tmp_path / "other-base")
    recipe = with_keys(place, model__base=str(other))
    assert find_model(recipe, registry, checkpoints[kind]).base == str(place.folder / "base")
    settings = recipe_of(place, kind).model
    require_matching_adapter(settings, str(place.folder / "base"), checkpoints[kind])
    with pytest.raises(RunError, match=r"model\.base: .*/base' in the checkpoint, .*other-base"):
        require_matching_adapter(settings, str(other), checkpoints[kind])
    for wrong in ("lora", "full"):
        with pytest.raises(RunError, match=rf"'{kind}' in the checkpoint, '{wrong}' in this"):
            require_matching_adapter(
                recipe_of(place, wrong).model, str(place.folder / "base"), checkpoints[kind]
            )


def test_prompts_of_a_run_and_of_a_search_have_its_soft_tokens(
    place: Place, registry: Registry, checkpoints: dict[str, str]
) -> None:
    recipe = recipe_of(place, "prompt")
    plan = create_run_plan(recipe, place.corpus)
    assert (plan.prompt_template, plan.template.soft_tokens) == ("table1+5", 5)
    assert create_run_plan(recipe_of(place, "partial"), place.corpus).template == TABLE1
    fresh = plan_search(recipe_of(place, "prompt", finetune__start="fresh"), registry, print)
    started = plan_search(with_keys(place, finetune__start=checkpoints["prompt"]), registry, print)
    assert fresh.template == started.template == TABLE1.with_soft_tokens(5)
    with pytest.raises(RunError, match=r"soft_tokens: 5 in the checkpoint, 9 in this recipe"):
        require_matching_adapter(
            recipe.model.model_copy(update={"soft_tokens": 9}),
            str(place.folder / "base"),
            checkpoints["prompt"],
        )


def test_a_card_of_a_part_says_how_it_becomes_a_model(
    place: Place, checkpoints: dict[str, str]
) -> None:
    folder = Path(checkpoints["partial"]) / checkpoint.ADAPTER
    assert json.loads((folder / "partial_config.json").read_text()) == {
        "base_model_name_or_path": str(place.folder / "base"),
        "revision": None,
    }

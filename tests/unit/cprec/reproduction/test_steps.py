"""Which steps tables and figures need, and which keys of the recipe they depend on."""

from collections.abc import Mapping
from typing import Any

import pytest

from cluster.errors import RecipeError
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.reproduction.models import artefacts
from cprec.reproduction.steps import plan_tasks, select_artefacts
from cprec.reproduction.workflow import plan_reproduction


def make_recipe(**changes: Mapping[str, Any] | int) -> Recipe:
    data = {"format": "simulated", "domains": ["Books", "Music"], "held_out": ["Games", "Toys"]}
    return validate_recipe({"data": data, **changes}, "the test")


def digests(recipe: Recipe, *only: str) -> dict[str, str]:
    return plan_tasks(recipe, select_artefacts(recipe, only))[0].digests


def changed_kinds(**changes: Mapping[str, Any] | int) -> set[str]:
    """Returns the kinds of steps that a change of the recipe computes anew."""
    before, after = digests(make_recipe()), digests(make_recipe(**changes))
    return {name.split("-")[0] for name in before if before[name] != after.get(name)}


def test_all_tables_and_figures_of_the_paper_are_there() -> None:
    assert {artefact.name for artefact in artefacts((0.1,))} == {
        *(f"table{number}" for number in range(2, 8)),
        *(f"figure{number}" for number in (2, 4, 5)),
    }


def test_table_3_needs_each_model_on_each_domain() -> None:
    names = set(digests(make_recipe(), "table3"))
    for domain in ("Games", "Toys"):
        assert {f"score-{model}-{domain}" for model in ("popularity", "sasrec", "cprec")} <= names
        assert {f"tune-{model}-{domain}" for model in ("llara", "cprec")} <= names
    assert [name for name in names if name.startswith("pretrain")] == ["pretrain-wsa"]
    assert not any(name.startswith("generate-sasrec") for name in names)


def test_tables_share_steps() -> None:
    recipe = make_recipe()
    together = digests(recipe)
    for artefact in artefacts(recipe.reproduce.shares):
        assert digests(recipe, artefact.name).items() <= together.items()


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"seed": 1}, {"corpus", "pretrain", "tune", "score", "generate"}),
        ({"simulate": {"users": 50}}, {"corpus", "pretrain", "tune", "score", "generate"}),
        ({"train": {"max_samples": 10}}, {"pretrain", "tune", "score", "generate"}),
        ({"finetune": {"epochs": 1}}, {"tune", "score", "generate"}),
        ({"evaluate": {"max_users": 10}}, {"score", "generate"}),
        ({"reproduce": {"generated_users": 10}}, {"generate"}),
        ({"workers": 7}, set()),
        ({"checkpoint": {"keep": 9}}, set()),
        ({"search": {"concurrent": 3}}, set()),
        ({"mlflow": {"experiment": "another"}}, set()),
        ({"finetune": {"start": "fresh", "name": "mine"}}, set()),
    ],
)
def test_a_key_changes_the_steps_that_it_decides(
    changes: Mapping[str, Any], kinds: set[str]
) -> None:
    assert changed_kinds(**changes) == kinds


def test_pre_training_leaves_llara_and_the_baselines_as_they_are() -> None:
    before = digests(make_recipe(), "table3")
    after = digests(make_recipe(train={"max_samples": 10}), "table3")
    same = {name for name in before if before[name] == after[name]}
    assert {"corpus", "tune-llara-Games", "score-llara-Games", "score-sasrec-Games"} <= same
    assert "score-base-Games" in same


def test_zero_shot_models_are_prompted_and_nothing_of_them_is_tuned() -> None:
    names = set(digests(make_recipe(), "table3", "table4", "table6"))
    assert {"score-chatrec-Games", "score-llara-untuned-Games", "score-base-Games"} <= names
    assert not {"tune-llara-untuned-Games", "tune-chatrec-Games", "generate-chatrec-Games"} & names


def test_a_key_of_one_baseline_scores_that_one_again() -> None:
    before = digests(make_recipe())
    after = digests(make_recipe(baseline={"tedrec_experts": 2}))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"score-tedrec-Games", "score-tedrec-Toys"}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"table9.*table2, table3"):
        select_artefacts(make_recipe(), ["table9"])


def test_a_recipe_without_held_out_domains_is_refused() -> None:
    recipe = validate_recipe({"data": {"domains": ["Books"]}}, "the test")
    with pytest.raises(RecipeError, match="held_out"):
        plan_reproduction(recipe, [])


def test_one_domain_alone_is_all_domains() -> None:
    data = {"domains": ["Books"], "held_out": ["Games"]}
    recipe = validate_recipe({"data": data}, "the test")
    assert "pretrain-one-domain" not in digests(recipe)
    with pytest.raises(RecipeError, match=r"two data\.domains"):
        select_artefacts(recipe, ["figure2"])


def test_a_step_of_the_demo_is_named_by_what_it_is() -> None:
    plan = plan_reproduction(make_recipe(), ["figure4"])
    assert [step.name for step in plan.graph.steps if step.kind == "pretrain"] == [
        "pretrain-domain-only",
        "pretrain-shuffled",
        "pretrain-no-decay",
        "pretrain-wsa",
    ]

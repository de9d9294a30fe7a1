"""Recipes that are given as keys: checked as files are, shown as they are given."""

from pathlib import Path

import pytest

import cprec
from cprec.config.recipe_file import load_recipe

KEYS = {"run": "a", "data": {"domains": ["Books", "Music"]}, "train": {"global_batch": 8}}


def test_keys_are_those_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("{run: a, data: {domains: [Books, Music]}, train: {global_batch: 8}}")
    recipe = cprec.Recipe(**KEYS)
    assert recipe == cprec.Recipe.from_file(file)
    assert recipe.flatten() == load_recipe(str(file)).flatten()
    assert recipe.data.domains == ("Books", "Music")
    (tmp_path / "whole.yaml").write_text(recipe.to_yaml())
    assert cprec.Recipe.from_file(str(tmp_path / "whole.yaml")) == recipe


def test_arguments_win_over_the_file_and_keep_what_they_do_not_name(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("{run: a, train: {global_batch: 8, max_samples: 100}}")
    recipe = cprec.Recipe.from_file(file, train={"global_batch": 16}, workers=3)
    assert (recipe.run, recipe.workers) == ("a", 3)
    assert (recipe.train.global_batch, recipe.train.max_samples) == (16, 100)
    dotted = cprec.Recipe.from_file(file, **{"train.global_batch": 16, "workers": 3})
    assert dotted == recipe


def test_replace_changes_some_keys_of_a_copy() -> None:
    recipe = cprec.Recipe(**KEYS)
    changed = recipe.replace(run="b", train={"max_samples": 5}, storage=Path("elsewhere"))
    assert (changed.run, changed.storage, recipe.run) == ("b", "elsewhere", "a")
    assert (changed.train.global_batch, changed.train.max_samples) == (8, 5)
    assert recipe.train.max_samples is None


def test_repr_makes_the_recipe_again() -> None:
    recipe = cprec.Recipe(**KEYS)
    assert repr(recipe) == (
        "Recipe(run='a', data={'domains': ('Books', 'Music')}, train={'global_batch': 8})"
    )
    assert eval(repr(recipe), {"Recipe": cprec.Recipe}) == recipe
    assert repr(cprec.Recipe()) == "Recipe()"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": {"global_bach": 3}}, "the arguments: no such key train.global_bach, did you"),
        ({"train": {"global_batch": "3"}}, "train.global_batch: "),
        ({"wokers": 1}, "did you mean workers?"),
        ({"train": 3}, "train is a section of keys, seen: 3"),
        ({"run": "../x"}, "run: "),
        ({"seed": object()}, "a type that no key takes"),
        ({"storage": "https://someone:secret@host/x"}, "storage"),
    ],
)
def test_wrong_keys_are_refused_as_those_of_jobs(keys: dict[str, object], message: str) -> None:
    for make in (cprec.Recipe, cprec.Recipe().replace):
        with pytest.raises(cprec.UserError) as refused:
            make(**keys)
        assert message in str(refused.value)
        assert "secret" not in str(refused.value)

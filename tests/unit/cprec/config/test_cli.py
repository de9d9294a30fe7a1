"""Recipes: one way to say each thing, and a message that helps for every wrong one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RecipeError
from cprec.config.cli import parse_arguments
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import iter_keys, load_recipe, parse_yaml, to_yaml, validate_recipe


def resolve(tmp_path: Path, text: str, *arguments: str) -> Recipe:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    return parse_arguments([str(recipe), *arguments], "a job", recipe)[0]


@given(
    st.integers(1, 10_000),
    st.floats(1e-9, 1e-4),
    st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True), unique=True, max_size=4),
)
def test_a_recipe_survives_yaml(batch: int, rate: float, domains: list[str]) -> None:
    recipe = validate_recipe(
        {
            "train": {"global_batch": batch},
            "schedule": {"lr_min": rate},
            "data": {"domains": domains},
        },
        "test",
    )
    assert validate_recipe(parse_yaml(to_yaml(recipe), "test"), "test") == recipe


def test_every_key_has_a_description_and_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    for name, _, default, description in iter_keys():
        assert description, name
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            resolve(tmp_path, "", f"--{name}", str(default))


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    recipe = resolve(
        tmp_path,
        "train: {global_batch: 64, micro_batch: 4}",
        "--train.global_batch",
        "32",
        "--data.domains",
        "A,B",
        "--seed",
        "3",
    )
    assert (recipe.train.global_batch, recipe.train.micro_batch, recipe.train.zero_stage) == (
        32,
        4,
        1,
    )
    assert (recipe.data.domains, recipe.seed) == (("A", "B"), 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "schedule: {warmpu_fraction: 0.1}",
            r"no such key schedule.warmpu_fraction, did you mean schedule.warmup_fraction\?",
        ),
        ("scedule: {lr_min: 1e-6}", r"no such key scedule, did you mean schedule\?"),
        ("seed: 1\nseed: 2", r"line 2: .*duplicate key"),
        ("train: {global_batch: true}", r"train.global_batch: .*seen: true"),
        ("train: {global_batch: 1.5}", r"train.global_batch: .*seen: 1.5"),
        (
            "train: {global_batch: -1}",
            r"train.global_batch: .*greater than or equal to 1.*seen: -1",
        ),
        ("train: {global_batch: '8'}", r"train.global_batch"),
        (
            "schedule: {warmup_fraction: 1.5}",
            r"schedule.warmup_fraction: .*less than or equal to 1",
        ),
        ("schedule: {lr_max: .nan}", r"schedule.lr_max"),
        ("schedule: {lr_max: .inf}", r"schedule.lr_max"),
        ("schedule: {lr_min: 1e-2, lr_max: 1e-3}", r"must not exceed"),
        ("run: ../elsewhere", r"run: "),
        ("run: a/b", r"run: "),
        ("data: {domains: [A], held_out: [A]}", r"one or the other"),
        ("data: {min_history: 5, max_history: 4}", r"at least data.min_history"),
        ("train: {targets_per_pass: 4, pack: false}", r"need train.pack: true"),
        ("train: {shared_candidates: 20, compile: true}", r"train.compile: false"),
        ("train: {shared_candidates: 3}", r"at least 4"),
        (
            "{train: {shared_candidates: 20}, schedule: {replay_share: 0.1}}",
            r"not beside schedule.replay_share 0.1",
        ),
        ("train: 5", r"train is a section"),
        ("- 1", r"a recipe is a mapping"),
        ("a: [", r"not YAML 1.2"),
    ],
)
def test_wrong_recipes_are_refused_with_what_to_change(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(tmp_path, text)


def test_yaml_1_2_means_what_it_says(tmp_path: Path) -> None:
    recipe = resolve(tmp_path, "schedule: {lr_max: 1e-3}\nmodel: {base: no}\nseed: 0123")
    assert (recipe.schedule.lr_max, recipe.model.base, recipe.seed) == (1e-3, "no", 123)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.global_bach", "3"], r"did you mean --train.global_batch\?"),
        (["--train.global_batch"], r"expected one argument"),
        (["--train.global_batch", "many"], r"train.global_batch: .*seen: many"),
        (["second.yaml"], r"one recipe at most"),
    ],
)
def test_wrong_command_lines_are_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(tmp_path, "", *arguments)


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(Exception, match=r"nowhere.yaml: no such file"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["R", "status", "--run", "trunk"],
        ["R", "--run", "trunk", "status"],
        ["--run", "trunk", "R", "status"],
    ],
)
def test_a_word_may_stand_anywhere(tmp_path: Path, words: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3")
    arguments = [str(recipe) if word == "R" else word for word in words]
    resolved, options = parse_arguments(
        arguments, "a job", tmp_path / "none.yaml", actions=("status", "anneal")
    )
    assert (resolved.run, resolved.seed, options.action) == ("trunk", 3, "status")


def test_a_mistyped_word_is_told_the_words(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"'aneal' is neither a recipe \(.yaml\) nor one of status, anneal"
    ):
        parse_arguments(
            ["aneal", "--run", "trunk"],
            "a job",
            tmp_path / "none.yaml",
            actions=("status", "anneal"),
        )

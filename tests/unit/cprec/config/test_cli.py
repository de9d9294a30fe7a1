"""The command line: keys, recipe and action in any order, and what wrong arguments are answered."""

from pathlib import Path

import pytest

from cluster.errors import RecipeError
from cprec.config.cli import Job, parse_arguments
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.recipe_file import iter_keys

JOB = Job(lambda recipe, options: None, "A job.", ("run", "search", "finetune", "baseline"))
SENDER = Job(JOB.run, JOB.description, ("run",), actions=("status", "anneal"))


def resolve(tmp_path: Path, text: str, *arguments: str) -> Recipe:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    return parse_arguments([str(recipe), *arguments], JOB, recipe)[0]


def test_every_key_has_a_description_and_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    for key in iter_keys():
        assert key.description, key.name
        if isinstance(key.default, int | float | str) and not isinstance(key.default, bool):
            resolve(tmp_path, "", f"--{key.name}", str(key.default))


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
    assert (recipe.train.global_batch, recipe.train.micro_batch, recipe.train.max_failures) == (
        32,
        4,
        3,
    )
    assert (recipe.data.domains, recipe.seed) == (("A", "B"), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.global_bach", "3"], r"did you mean --train.global_batch\?"),
        (["--train.global_batch"], r"expected one argument"),
        (
            ["--train.global_batch", "many"],
            r"and the command line: 1 wrong value\(s\):\n  train.global_batch: .*seen: many",
        ),
        (["second.yaml"], r"one recipe at most"),
    ],
)
def test_wrong_command_lines_are_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(tmp_path, "", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["R", "status", "--run", "trunk"],
        ["R", "--run", "trunk", "status"],
        ["--run", "trunk", "R", "status"],
    ],
)
def test_an_action_may_stand_anywhere(tmp_path: Path, arguments: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3")
    resolved, options = parse_arguments(
        [str(recipe) if argument == "R" else argument for argument in arguments],
        SENDER,
        tmp_path / "none.yaml",
    )
    assert (resolved.run, resolved.seed, options.action) == ("trunk", 3, "status")


def test_a_mistyped_action_is_answered_with_the_actions(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=r"'aneal' is neither a recipe \(.yaml or .json\) nor one of status, anneal",
    ):
        parse_arguments(["aneal", "--run", "trunk"], SENDER, tmp_path / "none.yaml")


def test_a_key_may_be_given_under_its_old_name(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("search: {rates: [1e-2]}\nbaseline: {rate: 0.3}")
    lines: list[str] = []
    arguments = [str(recipe), "--search.rates", "1e-5,1e-3", "--finetune.floor=0.5"]
    resolved, options = parse_arguments(arguments, JOB, recipe, say=lines.append)
    assert resolved.search.lrs == (1e-5, 1e-3)
    assert options.keys == {"search.lrs": "1e-5,1e-3", "finetune.lr_min_ratio": "0.5"}
    assert resolved.finetune.lr_min_ratio == 0.5
    assert resolved.baseline.lr == 0.3
    assert lines == [
        "--finetune.floor is now called --finetune.lr_min_ratio",
        "--search.rates is now called --search.lrs",
        f"{recipe}: search.rates is now called search.lrs",
        f"{recipe}: baseline.rate is now called baseline.lr",
    ]


def test_a_new_name_on_the_command_line_wins_over_an_old_one_in_the_file(tmp_path: Path) -> None:
    recipe = resolve(tmp_path, "search: {rates: [1e-2]}", "--search.lrs", "1e-5")
    assert recipe.search.lrs == (1e-5,)


def test_a_key_under_both_names_is_refused(tmp_path: Path) -> None:
    message = "--search.rates is now called --search.lrs, and both are given; keep --search.lrs"
    with pytest.raises(RecipeError, match=message):
        resolve(tmp_path, "", "--search.rates", "1e-2", "--search.lrs", "1e-2")


def test_help_shows_only_new_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        resolve(tmp_path, "", "--help-all")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for old, new in RENAMED_KEYS.items():
        assert f"--{old}" not in shown
        assert f"--{new}" in shown

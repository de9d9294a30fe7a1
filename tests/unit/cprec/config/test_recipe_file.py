"""Recipe files: YAML to a recipe and back, messages for wrong ones, keys under their old names."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RecipeError
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.recipe_file import (
    iter_keys,
    load_recipe,
    parse_yaml,
    rename_old_keys,
    restore_old_keys,
    to_yaml,
    validate_recipe,
)


def load(tmp_path: Path, text: str) -> Recipe:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    return load_recipe(str(recipe))


@given(
    st.integers(1, 10_000),
    st.floats(1e-9, 1e-4),
    st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True), unique=True, max_size=4),
)
def test_a_recipe_survives_yaml(batch: int, lr: float, domains: list[str]) -> None:
    recipe = validate_recipe(
        {
            "train": {"global_batch": batch},
            "schedule": {"lr_min": lr},
            "data": {"domains": domains},
        },
        "test",
    )
    assert validate_recipe(parse_yaml(to_yaml(recipe), "test"), "test") == recipe


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
        ("data: {domains: [A], held_out: [A]}", r"data: \['A'\] in both.*one or the other$"),
        ("train:\n\tmicro_batch: 8", r"line 2: not YAML 1.2: .*; indent with spaces"),
        ("data: {min_history: 5, max_history: 4}", r"at least data.min_history"),
        ("train: {targets_per_pass: 4, pack: false}", r"need train.pack: true"),
        ("train: {shared_candidates: 20, compile: true}", r"train.compile: false"),
        ("train: {shared_candidates: 3}", r"at least 4"),
        (
            "{train: {shared_candidates: 20}, schedule: {replay_share: 0.1}}",
            r"not beside schedule.replay_share 0.1",
        ),
        (
            "{train: {shared_candidates: 20}, schedule: {objectives: {mixed: {masked_item: 1}}}}",
            r"not beside schedule.objectives",
        ),
        (
            "schedule: {objectives: {mixed: {masked: 1}}}",
            r"mixed: 'masked' is no objective; those are next_item, masked_item, replaced_item, ne",
        ),
        (
            "schedule: {objectives: {text/a: {masked_item: 1}}}",
            r"'text/a' is no source of samples with a history; those are domain/NAME, mixed, and d",
        ),
        (
            "schedule: {objectives: {domain: {next_history: -1}}}",
            r"domain: next_history has the weight -1; at least 0",
        ),
        ("schedule: {objectives: {domain/A: {next_item: 0}}}", r"no objective has a weight above"),
        ("schedule: {objectives: {mixed: {next_item: .inf}}}", r"mixed.next_item: .* finite"),
        ("train: 5", r"train is a section"),
        ("- 1", r"a recipe is a mapping"),
        ("a: [", r"not YAML 1.2"),
    ],
)
def test_wrong_recipes_are_refused_with_what_to_change(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, text)


def test_yaml_1_2_means_what_it_says(tmp_path: Path) -> None:
    recipe = load(tmp_path, "schedule: {lr_max: 1e-3}\nmodel: {base: no}\nseed: 0123")
    assert (recipe.schedule.lr_max, recipe.model.base, recipe.seed) == (1e-3, "no", 123)


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(Exception, match=r"nowhere.yaml: no such file"):
        load_recipe("nowhere.yaml")


OLD_KEYS = """
data: {speaking_titles: drop}
search: {rates: [1e-2]}
finetune: {floor: 0.5}
baseline: {rate: 0.1, gru_rate: 0.2}
"""


def test_a_file_of_an_earlier_release_is_read_under_the_new_names(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(OLD_KEYS)
    lines: list[str] = []
    recipe = load_recipe(str(path), say=lines.append)
    assert recipe.data.prompt_injection == "drop"
    assert recipe.search.lrs == (1e-2,)
    assert recipe.finetune.lr_min_ratio == 0.5
    assert (recipe.baseline.lr, recipe.baseline.gru4rec_lr) == (0.1, 0.2)
    assert lines == [f"{path}: {old} is now called {new}" for old, new in RENAMED_KEYS.items()]
    written = to_yaml(recipe)
    assert "gru_rate" not in written
    assert validate_recipe(parse_yaml(written, "test"), "test") == recipe


def test_a_file_of_an_earlier_release_is_read_silently_without_a_listener(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, OLD_KEYS)
    assert capsys.readouterr() == ("", "")


def test_an_override_wins_over_a_key_under_its_old_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("search: {rates: [1e-2]}")
    assert load_recipe(str(path), {"search.lrs": [1e-3]}).search.lrs == (1e-3,)


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_key_under_both_names_is_refused(tmp_path: Path, old: str, new: str) -> None:
    section, old_key = old.split(".")
    new_key = new.removeprefix(f"{section}.")
    with pytest.raises(RecipeError, match=rf"{old} is now called {new}, and both are given"):
        load(tmp_path, f"{section}: {{{old_key}: 0.5, {new_key}: 0.5}}")


def test_renamed_keys_stay_in_their_section_and_name_keys_that_exist() -> None:
    names = {key.name for key in iter_keys()}
    for old, new in RENAMED_KEYS.items():
        assert old.split(".")[0] == new.split(".")[0]
        assert new in names
        assert old not in names


def test_old_names_can_be_restored_for_digests() -> None:
    old = {"rate": 0.1, "gru_rate": 0.2, "size": 8}
    new = {"lr": 0.1, "gru4rec_lr": 0.2, "size": 8}
    assert rename_old_keys({"baseline": old}, "test") == {"baseline": new}
    assert restore_old_keys("baseline", new) == old


@pytest.mark.parametrize("text", ["search: 5", "search:", "search: [rates]"])
def test_what_should_be_a_section_and_is_none_is_still_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="search is a section of keys"):
        load(tmp_path, text)


LAUGHS = "data:\n  domains: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"train{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested without an end"),
        (b"{a: " * 100_000, "nested without an end"),
        (LAUGHS.encode(), "values, aliases .* followed; a recipe has at most 10,000"),
        (b"data: &a {domains: [*a]}", "part of what it stands for"),
        (b"storage: caf\xe9", r"not UTF-8 text \(.* at byte 12\)"),
        (b"\xff\xfes\x00e\x00", "not UTF-8 text"),
        (b"seed: 1\x00", "not YAML 1.2"),
        (b"storage: 2021-13-45", "not YAML 1.2|date|wrong"),
        (b"seed: " + b"9" * 5000, "seed|not YAML"),
        (b"seed: !!python/object:os.system 1", "not YAML 1.2"),
        (b"storage: !!binary aGk=", "storage|type that no key takes"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_at_once(
    tmp_path: Path, content: bytes, message: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(recipe))


def test_an_alias_that_is_used_twice_is_fine(tmp_path: Path) -> None:
    recipe = load(tmp_path, "data: {domains: &d [A, B]}\nevaluate: {models: *d }")
    assert recipe.data.domains == recipe.evaluate.models == ("A", "B")


@pytest.mark.parametrize("name", ["bases", "baselines", "mlflow", "mlflow.db", "mlflow.db-wal"])
def test_a_run_has_no_name_that_the_storage_uses_itself(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"run: .*storage has a folder or file of that name"):
        load(tmp_path, f"run: {name}")


def test_answers_of_text_cannot_rank_a_catalogue() -> None:
    with pytest.raises(RecipeError, match=r"catalogue needs evaluate\.mode: score; generate"):
        validate_recipe({"evaluate": {"candidates": "catalogue", "mode": "generate"}}, "the test")
    recipe = validate_recipe({"evaluate": {"candidates": "catalogue"}}, "the test")
    assert recipe.evaluate.form == "catalogue"
    assert validate_recipe({"evaluate": {"mode": "generate"}}, "it").evaluate.form == "generate"


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "a\\b", "/etc", "a\n", "~", "%2e%2e"])
@pytest.mark.parametrize("key", ["run", "data.domains", "data.held_out", "finetune.domain"])
def test_a_name_that_would_leave_its_folder_is_refused(tmp_path: Path, key: str, name: str) -> None:
    section, _, field = key.partition(".")
    value = [name] if key.startswith("data.") else name
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({section: {field: value} if field else value}))
    with pytest.raises(RecipeError, match=re.escape(key)):
        load_recipe(str(file))

"""Files of an earlier release, whose keys had other names: runs, searches and baselines go on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RunError
from corpus.store.commits import Commit
from corpus.store.tables import Corpus
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.recipe_file import to_yaml, validate_recipe
from cprec.downstream.search_plan import SearchPlan, lock_identity
from cprec.downstream.stored_baselines import baseline_uri
from cprec.encode.prompt import BRACES, TABLE1
from cprec.runs.locks.recipe import check_unchanged


def old_names(text: str) -> str:
    """YAML or JSON with the keys named as in the earlier release."""
    for old, new in RENAMED_KEYS.items():
        old_key, new_key = old.split(".")[1], new.split(".")[1]
        for before, after in ((f" {new_key}:", f" {old_key}:"), (f'"{new_key}"', f'"{old_key}"')):
            text = text.replace(before, after)
    return text


@pytest.fixture
def corpus() -> Corpus:
    return Corpus("corpus", 0, (Commit(0, {"fingerprint": "f"}, (), frozenset(), "", 0),))


def test_a_run_goes_on_from_its_old_recipe_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = validate_recipe({"search": {"lrs": [0.1]}, "baseline": {"lr": 0.5}}, "test")
    text = old_names(to_yaml(recipe))
    assert "rates:" in text
    assert "gru_rate:" in text
    assert "lrs:" not in text
    (tmp_path / "resolved.yaml").write_text(text)
    assert check_unchanged(recipe, str(tmp_path)) == recipe
    assert capsys.readouterr() == ("", "")


def test_a_change_is_shown_and_accepted_under_either_name(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text(old_names(to_yaml(Recipe())))
    changed = validate_recipe({"data": {"prompt_injection": "drop"}}, "test")
    with pytest.raises(RunError, match=r"data\.prompt_injection: 'keep' -> 'drop'"):
        check_unchanged(changed, str(tmp_path))
    assert check_unchanged(changed, str(tmp_path), ["data.prompt_injection"]) == Recipe()
    assert check_unchanged(changed, str(tmp_path), ["data.speaking_titles"]) == Recipe()


def test_a_search_goes_on(tmp_path: Path, corpus: Corpus) -> None:
    plan = SearchPlan(
        Recipe(), corpus, "Games", "cprec", str(tmp_path), "base", "start", None, (0.1,), BRACES
    )
    lock_identity(plan)
    identity = tmp_path / "identity.json"
    earlier = old_names(identity.read_text())
    assert json.loads(earlier)["finetune"]["floor"] == 0.01
    assert json.loads(earlier)["baseline"]["gru_rate"] == 0.05
    earlier = json.dumps(
        {key: value for key, value in json.loads(earlier).items() if key != "prompt_template"},
        indent=1,
    )
    identity.write_text(earlier)
    lock_identity(plan)
    assert identity.read_text() == earlier
    with pytest.raises(RunError, match=r"prompt_template: 'braces' -> 'table1'"):
        lock_identity(replace(plan, template=TABLE1))
    identity.write_text(earlier.replace("0.01", "0.02"))
    with pytest.raises(RunError, match=r"\n  finetune\.lr_min_ratio: 0\.02 -> 0\.01\n"):
        lock_identity(plan)


def test_a_search_depends_on_what_decides_its_trials_alone(tmp_path: Path, corpus: Corpus) -> None:
    def plan(values: dict[str, Any]) -> SearchPlan:
        recipe = validate_recipe({"model": values}, "test")
        return SearchPlan(
            recipe, corpus, "Games", "cprec", str(tmp_path), "base", "start", None, (0.1,), TABLE1
        )

    lock_identity(plan({"precision": "bf16"}))
    fp8 = {"precision": "bf16", "fp8": True, "fp8_fast_accumulation": True, "license": "mit"}
    lock_identity(plan(fp8))
    with pytest.raises(RunError, match=r"\n  model\.precision: 'bf16' -> 'fp32'\n"):
        lock_identity(plan({}))
    # A release that did not know a key behaved as its default does; one may have noted FP8.
    identity = tmp_path / "identity.json"
    earlier = json.loads(identity.read_text())
    del earlier["model"]["lora_dropout"]
    earlier["model"]["fp8"] = False
    identity.write_text(json.dumps(earlier))
    lock_identity(plan(fp8))
    with pytest.raises(RunError, match=r"\n  model\.lora_dropout: 0\.1 -> 0\.2\n"):
        lock_identity(plan({"precision": "bf16", "lora_dropout": 0.2}))
    earlier["model"]["of_another_release"] = 7
    identity.write_text(json.dumps(earlier))
    with pytest.raises(RunError, match=r"\n  model\.of_another_release: 7 -> None\n"):
        lock_identity(plan(fp8))


def test_a_search_keeps_the_optimizer_of_its_first_start(tmp_path: Path, corpus: Corpus) -> None:
    def plan(values: dict[str, Any]) -> SearchPlan:
        recipe = validate_recipe({"train": values}, "test")
        return SearchPlan(
            recipe, corpus, "Games", "cprec", str(tmp_path), "base", "start", None, (0.1,), TABLE1
        )

    lock_identity(plan({"gradient_clipping": 0.5}))
    lock_identity(plan({"gradient_clipping": 0.5, "max_samples": 7}))  # of pre-training
    with pytest.raises(RunError, match=r"\n  train\.gradient_clipping: 0\.5 -> 1\.0\n"):
        lock_identity(plan({}))
    with pytest.raises(RunError, match=r"\n  train\.adam_beta2: 0\.999 -> 0\.95\n"):
        lock_identity(plan({"gradient_clipping": 0.5, "adam_beta2": 0.95}))
    identity = tmp_path / "identity.json"
    earlier = json.loads(identity.read_text())
    del earlier["train"]  # a release that noted no optimizer
    identity.write_text(json.dumps(earlier))
    lock_identity(plan({"adam_beta2": 0.95}))


def test_baselines_are_where_the_earlier_release_put_them(corpus: Corpus) -> None:
    uri = baseline_uri(Recipe(storage="/runs"), corpus, "Games", "sasrec", 0)
    assert uri == "/runs/baselines/Games/sasrec-92dfc8c2e306"

"""Questions about models are answered, and what is wrong with one is a sentence."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from corpus.append import append
from corpus.build import build
from cprec.config.recipe import Recipe
from cprec.workflows.console.try_models import MAX_FOUND, Trial, answer_lines
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    place = tmp_path_factory.mktemp("try")
    root = write_root(place / "root", shop(("A", "B", "C")))
    build(settings(root), 0, str(place / "corpus"), lambda line: None)
    return Recipe(storage=str(place / "runs"), corpus=str(place / "corpus"))


def ask(recipe: Recipe, *questions: dict[str, Any] | str) -> list[dict[str, Any]]:
    lines = [q if isinstance(q, str) else json.dumps(q) for q in questions]
    answers = io.StringIO()
    answer_lines(recipe, io.StringIO("".join(f"{line}\n" for line in lines)), answers, print)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_users_titles_and_samples_of_a_domain_are_found(recipe: Recipe) -> None:
    users = {"ask": "users", "domain": "A", "find": ""}
    titles = {"ask": "titles", "domain": "A", "find": "a"}
    choices, found, named = ask(recipe, {"ask": "choices"}, users, titles)
    assert (choices["domains"], choices["models"]) == (["A", "B", "C"], [])
    assert len(found["users"]) == min(found["found"], MAX_FOUND) > 0
    assert all("a" in title.lower() for title in named["titles"])
    user = found["users"][0]
    [sample] = ask(recipe, {"ask": "sample", "domain": "A", "user": user["user_id"]})
    assert len(sample["history"]) == user["length"]
    assert sample["taken"] in sample["candidates"]
    assert sample["taken"] not in sample["history"]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("{", "no JSON"),
        ({"ask": "sample", "domain": "A", "user": "nobody"}, "nobody: no user of A"),
        ({"ask": "users", "domain": "Moon", "find": ""}, "domain Moon has no test samples"),
    ],
)
def test_a_wrong_question_is_answered_by_a_sentence_and_ends_nothing(
    recipe: Recipe, question: dict[str, Any] | str, sentence: str
) -> None:
    wrong, after = ask(recipe, question, {"ask": "choices"})
    assert sentence in wrong["error"]
    assert after["domains"] == ["A", "B", "C"]


def test_what_was_appended_can_be_tried_at_once(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", shop(("A", "B", "C")))
    place = str(tmp_path / "corpus")
    build(settings(root, domains=("A",), held_out=("C",)), 0, place, lambda line: None)
    trial = Trial(Recipe(storage=str(tmp_path / "runs"), corpus=place), print)
    assert trial.choices()["domains"] == ["A", "C"]
    before = trial.titles("A", "")
    appended = settings(root, domains=("B",), held_out=("C",))
    append(appended, 0, place, lambda line: None)
    assert set(trial.choices()["domains"]) == {"A", "B", "C"}
    assert trial.titles("A", "") == before
    assert trial.users("B", "")["found"] > 0


def test_a_model_that_is_not_there_keeps_no_other_from_ranking(recipe: Recipe) -> None:
    given = {"history": ["x"], "candidates": ["a", "b"]}
    question = {"ask": "rank", "domain": "A", "models": ["models:/cprec/7"], **given}
    [answer] = ask(recipe, question)
    [ranking] = answer["rankings"]
    assert "no version 7" in ranking["error"]
    assert ranking["items"] == []

"""What jobs say at their end: commands that parse, and mean the same run."""

import shlex
import sys
from pathlib import Path

import pytest

from cprec.config.cli import Job, parse_arguments
from cprec.config.next_steps import after_build, after_evaluation, after_pretraining
from cprec.config.recipe import Recipe

DEMO = Path(__file__).resolve().parents[4] / "jobs" / "recipes" / "demo.yaml"
JOB = Job(lambda recipe, options: None, "A job.", ("run",))
STABLE = "/s/first/checkpoints/000000002048-0"


def commands(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, stable: str | None = STABLE
) -> list[tuple[str, Recipe]]:
    """The jobs that cpt names at its end, each with the recipe that it would run."""
    recipe, options = parse_arguments(arguments, JOB, DEMO)
    monkeypatch.setattr(sys, "argv", ["jobs/cpt.py", *arguments])
    head, *lines = after_pretraining(recipe, options, stable)
    assert head == "next:"
    found = []
    for line in lines:
        python, job, *words = shlex.split(line[line.index("python ") :])
        assert python == "python"
        names = [word for word in words if word.startswith("--")]
        assert len(names) == len(set(names)), line
        found.append((job, parse_arguments(words, JOB, DEMO)[0]))
    return found


def test_the_next_commands_name_the_run_and_repeat_where_everything_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "my recipe.yaml"
    file.write_text(DEMO.read_text())
    given = commands(
        monkeypatch,
        *(str(file), "--run", "first", "--storage", "/s", "--train.gpus_per_worker", "1"),
        *("--schedule.hold_open", "true", "--evaluate.domain", "Sports"),
    )
    assert [job for job, _ in given] == [
        f"jobs/{name}.py" for name in ("evaluate", "promote", "tune_lr", "append_domain", "cpt")
    ]
    for job, recipe in given:
        assert (recipe.storage, recipe.train.gpus_per_worker) == ("/s", 1), job
        assert not recipe.schedule.hold_open
    *same_run, (_, on) = given
    assert {recipe.run for _, recipe in same_run} == {"first"}
    assert (on.run, on.continue_from) == ("first-next", STABLE)
    assert given[0][1].evaluate.domain == given[2][1].finetune.domain == "Games"


def test_without_a_stable_checkpoint_nothing_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job for job, _ in commands(monkeypatch, stable=None)]
    assert jobs == ["jobs/evaluate.py", "jobs/promote.py", "jobs/tune_lr.py"]


def test_after_an_evaluation_its_candidate_is_promoted_or_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--run", "first", "--storage", "/s"]
    recipe, options = parse_arguments(arguments, JOB, DEMO)
    monkeypatch.setattr(sys, "argv", ["jobs/evaluate.py", *arguments])
    _, *lines = after_evaluation(recipe, options, "Games", has_candidate=True)
    words = [shlex.split(line[line.index("python ") :]) for line in lines]
    assert [job for _, job, *_ in words] == [
        f"jobs/{name}.py" for name in ("promote", "recommend", "tune_lr")
    ]
    promoted = parse_arguments(words[0][2:], JOB, DEMO)[0]
    assert (promoted.run, promoted.storage, promoted.evaluate.domain) == ("first", "/s", "Games")
    _, *lines = after_evaluation(recipe, options, "Games", has_candidate=False)
    assert len(lines) == 1


def test_after_a_build_the_corpus_is_looked_at_and_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--corpus", "/c", "--data.domains", "Garden"]
    recipe, options = parse_arguments(arguments, JOB, DEMO)
    monkeypatch.setattr(sys, "argv", ["jobs/build_corpus.py", *arguments])
    _, *lines = after_build(recipe, options)
    words = [shlex.split(line[line.index("python ") :]) for line in lines]
    assert "--run" not in words[0]
    assert [(job, flags[-1]) for _, job, *flags in words] == [
        ("jobs/build_corpus.py", "--inspect"),
        ("jobs/cpt.py", "--dry-run"),
        ("jobs/cpt.py", recipe.run),
    ]
    trained = parse_arguments(words[2][2:], JOB, DEMO)[0]
    assert (trained.corpus, trained.data.domains) == ("/c", ("Garden",))

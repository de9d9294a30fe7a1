"""One door: `python -m cprec JOB` is the script of that job, and completes as it does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.jobs import worker_environment

ROOT = Path(__file__).resolve().parents[3]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "source_roots")


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=worker_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_door_lists_the_jobs(arguments: tuple[str, ...]) -> None:
    ended = call("-m", "cprec", *arguments)
    assert ended.returncode == 0
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:2] == "  "] == JOBS
    assert max(map(len, lines)) <= 100


def test_an_unknown_job_is_answered_with_the_jobs() -> None:
    ended = call("-m", "cprec", "ctp")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no such job: ctp\n")
    assert "  cpt " in ended.stderr


@pytest.mark.parametrize("arguments", [("cpt", "--help"), ("control", "--nonsense", "3")])
def test_a_job_is_the_same_through_the_door(arguments: tuple[str, ...]) -> None:
    job, *rest = arguments
    through, directly = call("-m", "cprec", *arguments), call(f"jobs/{job}.py", *rest)
    assert (through.returncode, through.stdout, through.stderr) == (
        directly.returncode,
        directly.stdout,
        directly.stderr,
    )


def completions(line: str, answer: Path, shell: str = "bash") -> list[str]:
    """What a shell is answered that asks how a line goes on.

    The shell's side of it is argcomplete's own: it calls Python as here.
    """
    words = line.split()
    start = 3 if words[1] == "-m" else 2
    subprocess.run(
        [sys.executable, *words[1:start]],
        cwd=ROOT,
        env={
            **worker_environment(),
            "_ARGCOMPLETE": str(start),
            "_ARGCOMPLETE_SHELL": shell,
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        },
        check=True,
    )
    return [word.strip() for word in answer.read_text().split("\n") if word.strip()]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize("door", ["python jobs/cpt.py", "python -m cprec cpt"])
def test_keys_complete(door: str, shell: str, tmp_path: Path) -> None:
    found = completions(f"{door} my.yaml --schedule.lr", tmp_path / "answer", shell)
    assert [word.partition(":")[0] for word in found] == ["--schedule.lr_min", "--schedule.lr_max"]


def test_keys_of_other_jobs_do_not_complete(tmp_path: Path) -> None:
    assert completions("python jobs/cpt.py --gate.", tmp_path / "answer") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python jobs/cpt.py --model.adapter ", ["lora", "full", "partial", "prompt"]),
        ("python jobs/control.py --run cpt re", ["release"]),
        ("python jobs/cpt.py jobs/recipes/de", ["jobs/recipes/demo.yaml"]),
        ("python -m cprec ba", ["batch_recommend"]),
    ],
)
def test_values_actions_recipes_and_jobs_complete(
    line: str, words: list[str], tmp_path: Path
) -> None:
    assert completions(line, tmp_path / "answer") == words

"""The scripts behind make: a failure is one line that says what failed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_quiet_step_that_succeeds_prints_its_name_alone() -> None:
    process = run(".ci/step", "-q", "greeting", "echo", "hello")
    assert (process.returncode, process.stdout, process.stderr) == (
        0,
        "== greeting: echo hello\n",
        "",
    )


def test_a_step_that_fails_says_so_in_one_line_and_keeps_the_exit_code() -> None:
    process = run(".ci/step", "-q", "greeting", "bash", "-c", "echo what is wrong; exit 3")
    assert process.returncode == 3
    assert "what is wrong" in process.stdout
    [line] = process.stderr.splitlines()
    assert line.startswith("== FAILED: greeting (exit code 3")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what .ci/environment needs."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    return tmp_path


def test_without_a_supported_python_one_line_tells_how_to_name_one(checkout: Path) -> None:
    process = run(".ci/environment", cwd=checkout, PYTHON="no-such-python")
    [line] = process.stderr.splitlines()
    assert process.returncode == 1
    assert "make PYTHON=" in line


def test_an_environment_that_is_incomplete_or_moved_is_made_again(checkout: Path) -> None:
    """Only a stamp with this lock and this folder counts.

    Without it, the script first looks for a Python, which makes it fail here.
    """
    stamp = checkout / ".venv" / "complete"
    stamp.parent.mkdir()
    assert run(".ci/environment", cwd=checkout, PYTHON="no-such-python").returncode == 1
    digest = run(
        "bash", "-c", "cat requirements.lock pyproject.toml | sha256sum | cut -c1-16", cwd=checkout
    ).stdout.strip()
    stamp.write_text(f"{digest} {checkout}/.venv\n")
    assert run(".ci/environment", cwd=checkout, PYTHON="no-such-python").returncode == 0
    stamp.write_text(f"{digest} /elsewhere/.venv\n")
    assert run(".ci/environment", cwd=checkout, PYTHON="no-such-python").returncode == 1

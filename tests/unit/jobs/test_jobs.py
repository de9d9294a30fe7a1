"""All jobs follow one pattern, and their first lines are what --help begins with."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "jobs"
JOBS = sorted(path for path in ROOT.glob("*.py") if path.name != "source_roots.py")


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_help_begins_with_the_docstring(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [job.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code == 0
    docstring = ast.get_docstring(ast.parse(job.read_text()), clean=False)
    assert docstring is not None
    assert docstring.rstrip() in capsys.readouterr().out


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_is_short_and_finds_its_roots_before_anything_else(job: Path) -> None:
    text = job.read_text()
    assert 30 <= len(text.splitlines()) <= 60
    body = ast.parse(text).body
    first = body[1]
    assert isinstance(first, ast.Import)
    assert [name.name for name in first.names] == ["source_roots"]
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert "run_job" in functions
    assert set(functions) <= {"add_flags", "run_job", "show_corpus"}

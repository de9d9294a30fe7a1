"""All jobs follow one pattern, and their first lines are what --help begins with."""

import ast
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cprec.config.cli import Job, option_name, parse_arguments
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import iter_keys, load_recipe
from tests.integration.jobs import worker_environment

ROOT = Path(__file__).resolve().parents[3] / "jobs"
JOBS = sorted(path for path in ROOT.glob("*.py") if path.name != "source_roots.py")
DEMO = ROOT / "recipes" / "demo.yaml"
HEAVY = ("torch", "ray", "pyarrow", "polars", "mlflow", "fsspec", "aiohttp", "transformers")
"""Libraries that take seconds to load, which neither help nor a wrong argument waits for."""

each_job = pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.syspath_prepend(str(ROOT))
    job = runpy.run_path(str(path), run_name="a_job")["JOB"]
    assert isinstance(job, Job)
    return job


def shown(
    path: Path, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a job prints for a flag after which it ends."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT.parent)
    monkeypatch.setattr(sys, "argv", [path.name, flag])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"jobs/{path.name}", run_name="__main__")
    assert ended.value.code == 0
    return capsys.readouterr().out


def options(text: str) -> set[str]:
    """The options of keys that a help text lists."""
    known = {option_name(key.name) for key in iter_keys()}
    return set(re.findall(r"^  (--[\w.-]+)", text, re.MULTILINE)) & known


@each_job
def test_help_begins_with_the_usage_and_the_docstring(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(path, "--help", monkeypatch, capsys)
    assert text.startswith(f"usage: python jobs/{path.name} [RECIPE.yaml] ")
    docstring = ast.get_docstring(ast.parse(path.read_text()), clean=False)
    assert docstring is not None
    assert docstring.rstrip() in text


@each_job
def test_help_shows_the_keys_of_the_job_and_help_all_every_key(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = load(path, monkeypatch)
    every_key = [key.name for key in iter_keys()]
    for name in job.keys:
        assert any(key == name or key.startswith(f"{name}.") for key in every_key), name
    read = {option_name(key) for key in every_key if job.reads(key)}
    assert 0 < len(read) < len(every_key)
    assert options(shown(path, "--help", monkeypatch, capsys)) == read
    assert options(shown(path, "--help-all", monkeypatch, capsys)) == set(
        map(option_name, every_key)
    )


@each_job
def test_the_examples_parse_and_name_domains_that_the_demo_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load(path, monkeypatch)
    demo = load_recipe(str(DEMO))
    known = {*demo.data.domains, *demo.data.held_out}
    text = job.description.replace("\\\n", " ")
    examples = re.findall(rf"^    (?:ray .*)?python jobs/{path.name}(.*)$", text, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        # What explains an example stands behind a gap.
        words = shlex.split(re.split(r" {3,}(?=\w)", example)[0])
        arguments = [str(DEMO) if word == "my.yaml" else word for word in words]
        recipe, given = parse_arguments(arguments, job, DEMO)
        for section in (recipe.data, recipe.evaluate, recipe.finetune, recipe.recommend):
            domains = {*getattr(section, "domains", ()), getattr(section, "domain", None)}
            assert domains - {None} <= known
        assert all(job.reads(key) for key in given.keys), example


@each_job
def test_a_job_is_short_and_finds_its_roots_before_anything_else(path: Path) -> None:
    text = path.read_text()
    assert 30 <= len(text.splitlines()) <= 60
    body = ast.parse(text).body
    first = body[1]
    assert isinstance(first, ast.Import)
    assert [name.name for name in first.names] == ["source_roots"]
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert "run_job" in functions
    assert set(functions) <= {"add_flags", "run_job"}


def test_neither_help_nor_a_wrong_argument_loads_what_takes_seconds() -> None:
    script = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "for path in sys.argv[1:]:\n"
        "    runpy.run_path(path)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script, *map(str, JOBS)],
        env=worker_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split() == []


def test_a_recipe_holds_nothing_that_no_job_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [load(path, monkeypatch) for path in JOBS]
    assert not [key.name for key in iter_keys(Recipe) if not any(j.reads(key.name) for j in jobs)]


def test_without_the_environment_a_job_says_how_to_make_it() -> None:
    # -S and -E: without installed packages.
    command = [sys.executable, "-S", "-E", str(ROOT / "control.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "make environment" in ended.stderr

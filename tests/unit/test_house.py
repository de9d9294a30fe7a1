"""The house itself: names that must not be taken, recipes that load, a README that points at what is there, files that name no machine."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cprec.config.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))


def sources() -> list[Path]:
    """Files of the repository: what git tracks or would track; in a bare copy, everything."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        return [
            path for path in (ROOT / name for name in listed.stdout.splitlines()) if path.is_file()
        ]
    hidden = {".git", ".venv", "out", "__pycache__"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not hidden & set(path.relative_to(ROOT).parts)
    ]


def test_no_package_at_the_root_shadows_the_standard_library() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {"cluster", "corpus"}
    assert not packages & sys.stdlib_module_names


def test_platform_is_a_source_root() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert (ROOT / "platform" / "cprec" / "__init__.py").exists()


def test_standard_library_wins_where_the_root_comes_first() -> None:
    """As for a worker of `ray job submit --working-dir .`: the root at the head of the path."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import platform; print(platform.system(), platform.__file__)"
    told = subprocess.run(
        [sys.executable, "-S", "-c", script, str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    system, file = told.stdout.split()
    assert system
    assert not file.startswith(str(ROOT))


def test_jobs_find_the_packages_in_a_bare_checkout() -> None:
    """`source_roots` alone is enough: no install, no PYTHONPATH."""
    script = "import source_roots, cluster, corpus, cprec, platform; print(cprec.__file__); platform.system()"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    told = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=ROOT / "jobs",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(told.stdout.strip()) == ROOT / "platform" / "cprec" / "__init__.py"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(recipe: Path) -> None:
    load_recipe(str(recipe))


def test_every_job_is_a_script_that_finds_its_roots_first() -> None:
    for job in sorted((ROOT / "jobs").glob("*.py")):
        if job.name != "source_roots.py":
            imports = [
                line for line in job.read_text().splitlines() if re.match(r"(import|from) ", line)
            ]
            ours = [
                line
                for line in imports
                if re.match(r"(import|from) (source_roots|cprec|corpus|cluster)\b", line)
            ]
            assert ours[0].startswith("import source_roots"), job.name


def test_readme_names_what_is_there() -> None:
    """Every path in the tree and every file that a reader is sent to."""
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```\n(README\.md .*?)```", readme, re.DOTALL)
    assert tree
    named = [line.split()[0] for line in tree.group(1).splitlines() if line.strip()]
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in target]
    assert len(linked) >= 6
    missing = [name for name in named + linked if not (ROOT / name).exists()]
    assert not missing


def test_lock_and_pyproject_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if not line.startswith("#")
    )
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in locked.items()}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name, version = re.fullmatch(
            r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([0-9.]+)", requirement
        ).groups()  # type: ignore[union-attr]
        assert normal[re.sub(r"[-_.]+", "-", name).lower()] == version, name


def test_lock_is_exact_and_names_no_place() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines()[1:]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line


def test_no_file_names_a_machine_or_a_package_index() -> None:
    """Paths of someone's home or workplace and hosts of package indices belong into nobody's checkout."""
    # In pieces, so that this file does not name them either.
    words = (
        "/ho|me/[a-z]",
        "/wo|rk/",
        "/Us|ers/",
        "/op|t/py|pi",
        "py|pi\\.org",
        "index|-url",
        "find|-links",
    )
    private = re.compile("|".join(word.replace("|", "") for word in words))
    found = []
    for path in sources():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in private.finditer(text)]
    assert not found

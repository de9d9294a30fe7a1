"""The repository itself.

Packages shadow nothing, recipes load, the README names files that exist, pyproject.toml and the
lock agree, and no file names a machine.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from cprec.config.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))


def sources() -> list[Path]:
    """Lists the files that git tracks or would track; all files of a copy without git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        return [
            path for path in (ROOT / name for name in listing.stdout.splitlines()) if path.is_file()
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
    """A worker of `ray job submit --working-dir .` has the root at the head of its path."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        " import platform; print(platform.system(), platform.__file__)"
    )
    process = subprocess.run(
        [sys.executable, "-S", "-c", script, str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    system, file = process.stdout.split()
    assert system
    assert not file.startswith(str(ROOT))


def test_no_folder_of_code_has_more_files_than_one_takes_in_at_a_glance() -> None:
    folders = Counter(
        str(path.parent.relative_to(ROOT))
        for path in sources()
        # `jobs` is the list of commands: one file each, however many there are.
        if path.relative_to(ROOT).parts[0] not in ("docs", "jobs")
    )
    assert folders["platform/cprec/runs"]
    assert not {folder: count for folder, count in folders.items() if count > 14}


def test_no_file_of_code_is_longer_than_400_lines() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"
    }
    assert lines["platform/cprec/workflows/pretrain.py"]
    assert not {file: count for file, count in lines.items() if count > 400}


def test_jobs_find_the_packages_in_a_bare_checkout() -> None:
    """`source_roots` is enough: neither an installation nor PYTHONPATH is needed.

    With -S, only the standard library is there; `source_roots` is told that libraries are, too.
    """
    script = (
        "import importlib.util; importlib.util.find_spec = str;"
        " import source_roots, cluster, corpus, cprec, platform;"
        " print(cprec.__file__); platform.system()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=ROOT / "jobs",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(process.stdout.strip()) == ROOT / "platform" / "cprec" / "__init__.py"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(recipe: Path) -> None:
    load_recipe(str(recipe))


def test_every_job_is_a_script_that_finds_its_roots_first() -> None:
    for job in sorted((ROOT / "jobs").glob("*.py")):
        if job.name != "source_roots.py":
            imports = [
                line for line in job.read_text().splitlines() if re.match(r"(import|from) ", line)
            ]
            own_imports = [
                line
                for line in imports
                if re.match(r"(import|from) (source_roots|cprec|corpus|cluster)\b", line)
            ]
            assert own_imports[0].startswith("import source_roots"), job.name


def test_readme_names_files_that_exist() -> None:
    """Checks every path in the README's tree and every file that it links to."""
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
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in locked.items()}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name, version = re.fullmatch(
            r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([0-9.]+)", requirement
        ).groups()  # type: ignore[union-attr]
        assert locked[re.sub(r"[-_.]+", "-", name).lower()] == version, name


def test_lock_is_exact_and_names_no_package_index() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines()[1:]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line


def test_no_file_names_a_machine_or_a_package_index() -> None:
    """A checkout holds no path of anybody's machine and no host of a package index."""
    # Split by bars, so that this file does not contain them either.
    split_patterns = (
        "/ho|me/[a-z]",
        "/wo|rk/",
        "/Us|ers/",
        "/op|t/py|pi",
        "py|pi\\.org",
        "index|-url",
        "find|-links",
    )
    private = re.compile("|".join(pattern.replace("|", "") for pattern in split_patterns))
    problems = []
    for path in sources():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        problems += [
            f"{path.relative_to(ROOT)}: {match.group()}" for match in private.finditer(text)
        ]
    assert not problems

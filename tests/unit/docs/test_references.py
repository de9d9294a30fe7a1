"""Docs cannot rot: every path, page, module, recipe key and command that they name exists."""

import argparse
import importlib
import io
import re
import runpy
import shlex
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from corpus.store.tables import Corpus
from cprec.config.cli import parse_arguments
from cprec.config.recipe import RENAMED_KEYS
from cprec.config.recipe_file import iter_keys

ROOT = Path(__file__).resolve().parents[3]
TOPS = ("platform", "cprec", "corpus", "cluster", "jobs", "tests", "docs", "benchmarks")
SUFFIXES = "py|md|yaml|yml|toml|j2|sh|txt|lock|ipynb"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = [
    path
    for folder in ("platform", "corpus", "cluster", "jobs", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def prose(page: Path) -> str:
    """A page without its fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands between backticks outside of fenced code."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def comments(path: Path) -> Iterator[str]:
    """Docstrings and comments of a file of code."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and token.string.lstrip("rR").startswith('"""')
        ):
            yield token.string


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as a Git host makes them."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", h)) for h in found]
    return {h.strip().lower().replace(" ", "-") for h in plain}


def exists(name: str, beside: Path = ROOT) -> bool:
    """Whether a path is there: from the root, the source root, a package or the page itself."""
    roots = (ROOT, ROOT / "platform", ROOT / "platform" / "cprec", beside, ROOT / "docs")
    return any((root / name).exists() for root in roots)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert not broken


def test_each_picture_is_small_and_shown() -> None:
    shown = {
        Path(name).name for page in PAGES for name in re.findall(r"\((\S+\.png)\)", prose(page))
    }
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert {picture.name for picture in pictures} == shown
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


PATH = re.compile(rf"(?<![\w/.<>{{}}*-])((?:{'|'.join(TOPS)})/[\w./-]+\.(?:{SUFFIXES}))\b")
PAGE_NAME = re.compile(r"(?<![\w/<>{}*.-])([\w./-]+\.md)\b")


MUST_NOT_EXIST = {"platform/__init__.py"}


def missing_paths(text: str, beside: Path) -> list[str]:
    """Paths in a text that are not there; `jobs/X.py` and the like stand for any file."""
    named = [*PATH.findall(text), *PAGE_NAME.findall(text)]
    return [
        name
        for name in named
        if not (exists(name, beside) or name in MUST_NOT_EXIST or Path(name).stem.isupper())
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_named_in_docs_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it also names what was removed
    text = "\n".join(spans(page))
    assert not missing_paths(text, page.parent)


def test_tests_named_in_docs_exist() -> None:
    named = {span for page in PAGES for span in spans(page) if span.startswith("tests/")}
    missing = []
    for node in sorted(named):
        file, _, function = node.partition("::")
        if function and not re.search(
            rf"^def {re.escape(function)}\(", (ROOT / file).read_text(), re.MULTILINE
        ):
            missing.append(node)
    assert any("::" in node for node in named)
    assert not missing


def test_paths_named_in_docstrings_and_comments_exist() -> None:
    found = {
        str(path.relative_to(ROOT)): missing
        for path in CODE
        if path != Path(__file__)
        if (missing := missing_paths("\n".join(comments(path)), path.parent))
    }
    assert not found


@cache
def recipe_keys() -> set[str]:
    """Every recipe key, today's names and those that are still read."""
    return {key.name for key in iter_keys()} | set(RENAMED_KEYS)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        return has_attributes(value, parts[cut:])
    return False


def has_attributes(value: Any, names: list[str]) -> bool:
    for name in names:
        fields = getattr(value, "__dataclass_fields__", {}) | getattr(value, "model_fields", {})
        if name in fields:
            return True
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


MODULE = re.compile(r"`((?:cprec|corpus|cluster)(?:\.[a-z_]\w*)+(?:\.[A-Z]\w*)*)(?:\(\))?`")


def unknown_modules(text: str) -> list[str]:
    return [
        name
        for name in dict.fromkeys(MODULE.findall(text))
        # `corpus.uri` is an attribute of a variable, `cluster.address` a recipe key.
        if not (
            resolves(name) or has_attributes(Corpus, name.split(".")[1:]) or name in recipe_keys()
        )
    ]


def test_modules_named_in_docs_and_docstrings_exist() -> None:
    texts = {path: "\n".join(comments(path)) for path in CODE if path != Path(__file__)}
    texts |= {page: prose(page) for page in PAGES if page.name != "CHANGELOG.md"}
    unknown = {
        str(path.relative_to(ROOT)): missing
        for path, text in texts.items()
        if (missing := unknown_modules(text))
    }
    assert not unknown


KEY = re.compile(r"(?<![\w./`-])(?:--)?([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w./(])")


def unknown_keys(spans_of_code: list[str]) -> list[str]:
    """Dotted names that begin with a section of the recipe and are no key of it."""
    sections = {key.partition(".")[0] for key in recipe_keys() if "." in key}
    named = [name for span in spans_of_code for name in KEY.findall(span)]
    return [
        name
        for name in dict.fromkeys(named)
        if name.partition(".")[0] in sections
        and name not in recipe_keys()
        and not any(key.startswith(f"{name}.") for key in recipe_keys())
        # `train.distributed` is a folder, `schedule.svg` a file.
        and not (resolves(name) or resolves(f"cprec.{name}"))
        and Path(name).suffix not in (".py", ".md", ".json", ".yaml", ".svg")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipe_keys_named_in_docs_exist(page: Path) -> None:
    fenced = re.findall(r"^```.*?^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    options = re.findall(r"(?<=--)[a-z_]+\.[a-z_.0-9]+", "\n".join(fenced))
    assert not unknown_keys([*spans(page), *options])


def test_recipe_keys_named_in_messages_and_docstrings_exist() -> None:
    keyed = re.compile(
        r"`((?:data|model|schedule|train|checkpoint|evaluate|finetune|search|baseline|gate|mlflow)"
        r"\.[a-z_0-9.]+)`"
    )
    found = {
        str(path.relative_to(ROOT)): unknown
        for path in CODE
        if "tests" not in path.parts
        if (unknown := unknown_keys(keyed.findall("\n".join(comments(path)))))
    }
    assert not found


def expand_variables(block: str) -> str:
    """A block of shell with its own variables replaced: NAME="..." and $NAME."""
    for name, quoted, plain in re.findall(r'\b([A-Z_]+)=(?:"([^"]*)"|(\S+))', block):
        block = block.replace(f"${name}", quoted or plain)
    return block


SHELL_OPERATOR = re.compile(r"\s(?:&&|\|\||>|&)(?:\s|$)")


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command in a fenced block of a page: jobs and make."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S):
            lines = expand_variables(re.sub(r"\\?\n\s+", " ", block)).splitlines()
            for line in (part for whole in lines for part in SHELL_OPERATOR.split(whole)):
                if not re.search(r"\bmake [a-z]|\bpython jobs/[a-z_]+\.py", line):
                    continue
                words = shlex.split(line, comments=True)
                if words[:3] == ["ray", "job", "submit"]:
                    words = words[words.index("--") + 1 :]
                if words[:1] == ["make"] or (len(words) > 1 and words[1].startswith("jobs/")):
                    yield str(page.relative_to(ROOT)), words


@cache
def job_module(path: str) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "jobs"))
    try:
        return runpy.run_path(str(ROOT / path), run_name="a_job")
    finally:
        sys.path.remove(str(ROOT / "jobs"))


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a command; None if it parses."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = [word for word in words[1:] if "=" not in word]
        missing = [t for t in targets if not re.search(rf"^{re.escape(t)}:", makefile, re.M)]
        return f"no such target: {missing}" if missing else None
    job, arguments = words[1], [word for word in words[2:] if word != "..."]
    if not (ROOT / job).exists():
        return f"no such job: {job}"
    module = job_module(job)
    # The recipe of a reader: any recipe parses like it.
    demo = str(ROOT / "jobs" / "recipes" / "demo.yaml")
    arguments = [demo if re.fullmatch(r"\S+\.ya?ml", word) else word for word in arguments]
    try:
        parse_arguments(arguments, module["JOB"], Path(demo))
    except (UserError, argparse.ArgumentError) as error:
        return str(error)
    return None


def test_commands_named_in_docs_parse() -> None:
    listed = list(commands())
    assert len(listed) > 30
    assert not [(page, words, bad) for page, words in listed if (bad := problem_of(words))]


@pytest.mark.parametrize("package", ["cprec", "corpus"])
def test_the_layers_in_contributing_are_those_that_are_checked(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    checked = next(c for c in contracts if c["name"] == f"Inside {package}")["layers"]
    text = (ROOT / "CONTRIBUTING.md").read_text()
    line = re.search(rf"^- `{package}`: (`.*)$", text, re.MULTILINE)
    assert line
    named = [re.findall(r"`(\w+)`", layer) for layer in line[1].split(" > ")]
    assert named == [layer.split(" | ") for layer in checked]


def test_every_table_of_fields_is_made_from_a_type() -> None:
    text = (ROOT / "docs" / "reference" / "file-formats.md").read_text()
    by_hand = re.sub(r"<!-- (fields|columns): .*?<!-- end -->", "", text, flags=re.DOTALL)
    assert "| since |" in text
    assert "| since |" not in by_hand


def test_the_reference_is_made_from_the_types() -> None:
    """Fails where a type changed: run docs/reference/update.py."""
    reference = ROOT / "docs" / "reference"
    module = runpy.run_path(str(reference / "update.py"), run_name="update")
    for name in module["PAGES"]:
        text = (reference / name).read_text()
        assert module["updated"](text) == text, name

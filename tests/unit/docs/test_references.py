"""Docs cannot rot: every path, page, module, recipe key and command that they name exists."""

import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus.store.tables import Corpus

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


PATH = re.compile(rf"(?<![\w/.<>{{}}*-])((?:{'|'.join(TOPS)})/[\w./-]+\.(?:{SUFFIXES}))\b")
PAGE_NAME = re.compile(r"(?<![\w/<>{}*.-])([\w./-]+\.md)\b")


def missing_paths(text: str, beside: Path) -> list[str]:
    named = [*PATH.findall(text), *PAGE_NAME.findall(text)]
    return [name for name in named if not exists(name, beside)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_named_in_docs_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it also names what was removed
    text = "\n".join(spans(page))
    assert not missing_paths(text, page.parent)


def test_paths_named_in_docstrings_and_comments_exist() -> None:
    found = {
        str(path.relative_to(ROOT)): missing
        for path in CODE
        if path != Path(__file__)
        if (missing := missing_paths("\n".join(comments(path)), path.parent))
    }
    assert not found


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
        # `corpus.uri` is an attribute of a variable.
        if not (resolves(name) or has_attributes(Corpus, name.split(".")[1:]))
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

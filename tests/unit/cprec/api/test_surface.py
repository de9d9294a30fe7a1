"""What `import cprec` promises: the names, their signatures, and that the import costs nothing."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cprec
from cprec.api.frames import EVENTS, TRACE
from cprec.api.model import RANKING
from tests.integration.jobs import worker_environment

SURFACE = Path(__file__).with_name("surface.txt")
CONSTRUCTED = ("Recipe", "Run")
"""Classes that are called; the others are made by their methods, or are raised."""
ROOT = Path(__file__).resolve().parents[4]


def is_own(member: Any) -> bool:
    """Whether a member of a class is of cprec's API, not of a class that it inherits from."""
    function = member.fget if isinstance(member, property) else inspect.unwrap(member)
    return getattr(function, "__module__", "").startswith("cprec.api")


def describe(name: str, value: Any) -> Iterator[str]:
    """The public parts of a name, one a line."""
    if not inspect.isclass(value):
        yield f"{name}{inspect.signature(value)}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__)
    is_error = issubclass(value, Exception)
    yield (
        f"{name}{inspect.signature(value.__init__)}" if name in CONSTRUCTED else f"{name}({bases})"
    )
    for attribute in sorted(vars(value)):
        member = inspect.getattr_static(value, attribute)
        if attribute.startswith("_") or is_error:
            continue
        if isinstance(member, property) and member.fget is not None and is_own(member):
            yield f"{name}.{attribute}: {inspect.signature(member.fget).return_annotation}"
        elif callable(getattr(value, attribute)) and is_own(getattr(value, attribute)):
            yield f"{name}.{attribute}{inspect.signature(getattr(value, attribute))}"


def surface() -> str:
    """All that is public, as text."""
    lines = [line for name in cprec.__all__ for line in describe(name, getattr(cprec, name))]
    columns_by_name: dict[str, Iterable[str]] = {
        "Promotion": cprec.Promotion._fields,
        "Run.trace": TRACE,
        "Run.events": EVENTS,
        "Model.rank": RANKING,
    }
    lines += [f"{name}: {', '.join(columns)}" for name, columns in columns_by_name.items()]
    return "\n".join(lines) + "\n"


def test_what_is_public_is_what_was_promised() -> None:
    """Where this fails on purpose, say so in CHANGELOG.md, and write surface.txt anew.

    `python -m tests.unit.cprec.api.test_surface` prints it: in a process of its own, because Ray
    replaces `print`, which is a default, where a test has shown progress before.
    """
    printed = subprocess.run(
        [sys.executable, "-m", "tests.unit.cprec.api.test_surface"],
        cwd=ROOT,
        env=worker_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == SURFACE.read_text()


def test_every_public_name_is_documented_and_completed() -> None:
    assert dir(cprec) == sorted(cprec.__all__)
    for line in surface().splitlines():
        name = line.partition("(")[0].partition(":")[0]
        value: Any = cprec
        for part in name.split("."):
            value = getattr(value, part)
        assert inspect.getdoc(value), name


def test_the_reference_names_all_that_is_public() -> None:
    text = (ROOT / "docs" / "reference" / "python-api.md").read_text()
    assert not [name for name in cprec.__all__ if not re.search(rf":: {name}\b", text)]


def test_what_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'cprec' has no attribute 'trian'"):
        cprec.trian  # noqa: B018  that is what is tested


def test_the_import_loads_nothing() -> None:
    script = (
        "import sys, json; before = set(sys.modules)\nimport cprec\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=worker_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(ended.stdout))
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "cprec"
    }


if __name__ == "__main__":
    print(surface(), end="")

"""Runs the commands of a Markdown page as they stand, and finds in their output what it shows.

A block ```sh is run by bash; all blocks of a page in one shell, one after the other. The block
```text behind it is what it prints: each line of the page is found in the output, in order, and
`...` stands for anything. A block that begins with `# not run here` is not run.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("jobs", "platform", "corpus", "cluster", "docs", "tests")
NOT_RUN = "# not run here"
LIMIT_S = 600
_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """Commands of a page, and the lines that it shows of their output."""

    commands: str
    shown: tuple[str, ...]


def read_steps(page: Path) -> Iterator[Step]:
    """Yields the steps of a page that are to be run."""
    blocks = [*_BLOCK.findall(page.read_text(encoding="utf-8")), ("sh", "")]
    for (kind, text), (next_kind, next_text) in pairwise(blocks):
        if kind == "sh" and not text.startswith(NOT_RUN):
            lines = next_text.splitlines() if next_kind == "text" else ()
            yield Step(text, tuple(line for line in lines if line.strip()))


def run_page(page: Path, folder: Path) -> None:
    """Runs a page in a folder that looks like a checkout; fails at the first step that does.

    Args:
        page: The page.
        folder: Where its commands run; what earlier pages left there stays.
    """
    for name in SOURCES:
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    steps = list(read_steps(page))
    assert steps, f"{page} has no commands"
    ends = [f"--- end of step {number} ---" for number in range(len(steps))]
    script = "".join(
        f"{step.commands}\necho '{end}'\n" for step, end in zip(steps, ends, strict=True)
    )
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        rest, _ = process.communicate(timeout=LIMIT_S)
    finally:
        with suppress(ProcessLookupError):  # what a page left in the background
            os.killpg(process.pid, signal.SIGKILL)
    for step, end in zip(steps, ends, strict=True):
        output, ended, rest = rest.partition(f"{end}\n")
        at = f"{page.name}, exit code {process.returncode}, in\n{step.commands}\n{output}"
        assert ended, f"stopped: {at}"
        missing = first_missing(step.shown, output)
        assert missing is None, f"does not print {missing!r}: {at}"
    assert process.returncode == 0, rest


def first_missing(shown: tuple[str, ...], output: str) -> str | None:
    """Returns the first line that is not in an output behind those before it; None: all are."""
    position = 0
    for line in shown:
        words = (re.escape(part.strip()) for part in line.split("..."))
        found = re.compile(".*".join(words)).search(output, position)
        if found is None:
            return line
        position = found.end()
    return None


def _environment() -> Mapping[str, str]:
    """Returns the environment of a shell in which the project's environment is active."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}

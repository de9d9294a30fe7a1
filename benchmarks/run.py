"""Runs the benchmarks of docs/benchmarks.md one after the other, and writes what they print there.

    python benchmarks/run.py                     all that have no result of this commit yet
    python benchmarks/run.py training soak       these, whether they have one or not

The page owns the commands. A benchmark is a part of it that looks like this:

    <!-- benchmark: NAME -->
    ```sh
    COMMAND
    ```
    ... is replaced by date, machine, versions, commit, and what the command printed ...
    <!-- end -->

Each result is kept in out/benchmarks, so an interrupted run goes on where it was. Environments of
peers are made. A benchmark that lacks something else, such as a corpus, is left out and named. One
that fails is named too, the others run, and this ends with 1.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "out" / "benchmarks"

PACKAGES = ("torch", "transformers", "deepspeed", "ray", "polars")
BUSY_CORES = 0.25
"""Cores that other processes may use while a benchmark begins."""
LOOK_S = 2.0
"""Seconds for which the machine is looked at before each benchmark."""

NEEDED = re.compile(r"(?<![\w/.])((?:out|\.venv-\w+)/[\w./-]+)")
"""Paths in a command that something else makes."""
BLOCK = re.compile(
    r"<!-- benchmark: (?P<name>[\w-]+) -->\n```sh\n(?P<command>.*?)```\n(?P<old>.*?)<!-- end -->\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the page.

    Attributes:
        name: Its name.
        command: The lines of its command.
    """

    name: str
    command: str

    def missing(self) -> list[str]:
        """Returns the paths that its command reads and that are not there."""
        return [path for path in NEEDED.findall(self.command) if not (ROOT / path).exists()]


@dataclass(frozen=True)
class Result:
    """What a benchmark printed, and where.

    Attributes:
        command: Its command.
        commit: Commit of the code; with a plus where files had changed since.
        date: Day of the run (UTC).
        machine: The machine.
        versions: Versions of what decides about speed.
        busy_cores: Cores that other processes used when it began.
        seconds: How long it took.
        output: What it printed.
    """

    command: str
    commit: str
    date: str
    machine: str
    versions: str
    busy_cores: float
    seconds: float
    output: str

    @property
    def was_alone(self) -> bool:
        """Whether nothing else ran when it began."""
        return self.busy_cores <= BUSY_CORES

    def to_markdown(self) -> str:
        """Returns what stands under the command in the page."""
        beside = "alone" if self.was_alone else f"**beside work on {self.busy_cores:.1f} cores**"
        return (
            f"\n{self.date}, {self.machine}, {self.versions}, commit {self.commit}, "
            f"{self.seconds:,.0f} s, {beside}:\n\n```text\n{self.output.strip()}\n```\n\n"
        )


def read_benchmarks(page: str) -> Iterator[Benchmark]:
    """Reads the benchmarks of a page, in their order."""
    for found in BLOCK.finditer(page):
        yield Benchmark(found["name"], found["command"])


def write_result(page: str, name: str, result: Result) -> str:
    """Returns the page with a result in the place of the one before."""

    def replace(found: re.Match[str]) -> str:
        if found["name"] != name:
            return found[0]
        before = found[0][: found.start("old") - found.start()]
        return f"{before}{result.to_markdown()}<!-- end -->\n"

    return BLOCK.sub(replace, page)


def describe_machine() -> str:
    """Returns cores, memory and processor of this machine."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory_gib = psutil.virtual_memory().total / (1 << 30)
    return f"{os.cpu_count()} cores of {names[0] if names else model}, {memory_gib:.0f} GiB"


def describe_versions() -> str:
    """Returns the versions of Python and of the packages that decide about speed."""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"Python {platform.python_version()}, {packages}"


def code_commit() -> str:
    """Returns the last commit that changed more than docs; with a plus if files changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    code = ("--", ".", ":!docs")
    changed = git("status", "--porcelain", "--untracked-files=no", *code)
    return git("log", "-1", "--format=%h", *code).strip() + ("+" if changed.strip() else "")


def make_environment(path: str) -> None:
    """Makes the environment of a peer, if a path is in one that can be made.

    Args:
        path: Such as .venv-trl/bin/python, whose requirements are in benchmarks/peers.
    """
    folder = path.split("/")[0]
    requirements = ROOT / "benchmarks" / "peers" / f"requirements-{folder.split('-')[-1]}.txt"
    if folder.startswith(".venv-") and requirements.exists():
        print(f"installing {requirements.name} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", ROOT / folder], check=True)
        pip = [ROOT / folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-r", requirements], check=True)


def busy_cores() -> float:
    """Returns how many cores other processes use."""
    psutil.cpu_percent()
    time.sleep(LOOK_S)
    return psutil.cpu_percent() / 100 * (os.cpu_count() or 1)


def run(benchmark: Benchmark, commit: str) -> Result | None:
    """Runs a benchmark; what it writes to stderr is shown. None: it failed."""
    busy = busy_cores()
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    began = time.monotonic()
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", benchmark.command],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ended.returncode:
        print(
            f"{ended.stdout}{benchmark.name}: FAILED with exit code {ended.returncode}", flush=True
        )
        return None
    return Result(
        command=benchmark.command,
        commit=commit,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=describe_machine(),
        versions=describe_versions(),
        busy_cores=round(busy, 2),
        seconds=round(time.monotonic() - began, 1),
        output=ended.stdout,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for, and writes each result into the page as soon as it is there.

    Raises:
        SystemExit: A benchmark failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="run these, whether they have a result or not")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    benchmarks = list(read_benchmarks(options.page.read_text(encoding="utf-8")))
    known = [benchmark.name for benchmark in benchmarks]
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"no benchmark {unknown[0]} in {options.page}; there are {', '.join(known)}")
    commit = code_commit()
    options.results.mkdir(parents=True, exist_ok=True)
    failed = []
    for benchmark in benchmarks:
        if options.names and benchmark.name not in options.names:
            continue
        file = options.results / f"{benchmark.name}.json"
        for path in benchmark.missing():
            make_environment(path)
        if missing := benchmark.missing():
            print(f"{benchmark.name}: left out, there is no {missing[0]}", flush=True)
            continue
        if not options.names and file.exists():
            before = Result(**json.loads(file.read_text()))
            is_known = not commit.endswith("+")  # else there may be other changes by now
            if is_known and (before.command, before.commit) == (benchmark.command, commit):
                print(f"{benchmark.name}: has a result of {commit}", flush=True)
                continue
        print(f"{benchmark.name}: {' '.join(benchmark.command.split())}", flush=True)
        result = run(benchmark, commit)
        if result is None:
            failed.append(benchmark.name)
            continue
        file.write_text(json.dumps(asdict(result), indent=1))
        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(write_result(page, benchmark.name, result), encoding="utf-8")
        print(f"{benchmark.name}: {result.seconds:,.0f} s", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

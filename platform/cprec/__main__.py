# PYTHON_ARGCOMPLETE_OK
"""One door to all jobs: `python -m cprec cpt my.yaml` runs `python jobs/cpt.py my.yaml`.

    python -m cprec              lists the jobs
    python -m cprec cpt --help   what a job does, and what it takes

The jobs are the scripts of the checkout that this package is in.
"""

import argparse
import ast
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

JOBS = Path(__file__).resolve().parents[2] / "jobs"
USAGE = "usage: python -m cprec JOB [RECIPE.yaml] [--section.key VALUE ...]"


def main() -> int:
    """Runs the job that the first argument names, which ends the process; else lists the jobs."""
    if "_ARGCOMPLETE" in os.environ:
        return complete()
    name = next(iter(sys.argv[1:]), "--help")
    if name in find_jobs():
        run(name, sys.argv[2:])
    if name in ("-h", "--help"):
        print("\n".join(describe()))
        return 0
    print(f"error: no such job: {name}\n\n" + "\n".join(describe()), file=sys.stderr)
    return 1


def find_jobs() -> Mapping[str, Path]:
    """Returns the script of each job, by its name."""
    scripts = (path for path in sorted(JOBS.glob("*.py")) if path.stem != "source_roots")
    return {path.stem: path for path in scripts}


def describe() -> list[str]:
    """Returns what can be called, as lines: each job with the first sentence of its docstring."""
    jobs = {name: ast.parse(path.read_text("utf-8")) for name, path in find_jobs().items()}
    if not jobs:
        return [f"no jobs at {JOBS}: they are in a checkout of cprec, which is run from there"]
    width = max(map(len, jobs))
    lines = (f"  {name:<{width}}  {summary(module)}" for name, module in jobs.items())
    return [USAGE, "", *lines, "", "--help after the name of a job shows its keys and examples."]


def summary(module: ast.Module) -> str:
    """Returns the first line of a script's docstring, without the name that it may begin with."""
    line = (ast.get_docstring(module) or "").partition("\n")[0]
    line = line.partition(": ")[2] or line
    return line[:1].upper() + line[1:]


def run(name: str, arguments: list[str]) -> None:
    """Runs a job as its script is run by Python; the job ends the process."""
    sys.argv[1:] = arguments  # the first is set by runpy
    sys.path.insert(0, str(JOBS))
    runpy.run_path(os.path.relpath(find_jobs()[name]), run_name="__main__")


def complete() -> int:
    """Completes a command line for the shell: the name of a job, or a job's own arguments."""
    import argcomplete
    from argcomplete.lexers import split_line

    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    words = split_line(line, point)[3]
    first = int(os.environ["_ARGCOMPLETE"])  # index of the word after `python -m cprec`
    if len(words) > first and words[first] in find_jobs():
        # The job takes the words after its name as its own.
        os.environ["_ARGCOMPLETE"] = str(first + 1)
        run(words[first], [])
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=find_jobs())
    argcomplete.autocomplete(parser)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the console costs: beside a run that trains, and with a thousand runs in its storage.

    python benchmarks/console.py my.yaml --run live [--seconds 60] [--runs 1000]

A browser shows the page of the run in one tab and the list of all runs in another, and the CPU time
of the console with its children is read before and after. The thousand runs are copies of what the
run has written so far. Chromium must be on the machine.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import psutil

from cprec.config.recipe_file import load_recipe
from cprec.runs.control.listing import RunList
from tests.integration import chromium, jobs
from tests.integration.chromium import Browser, Page

SHOWN = "document.querySelectorAll('.runs tbody tr').length"
"""Rows of the list, as JavaScript."""
SAMPLES = "document.querySelector('.figures dd')?.textContent ?? ''"
"""Samples on the page of a run, as JavaScript."""


def open_page(browser: Browser, address: str, place: str) -> Page:
    """Opens a page of the console in a tab of its own."""
    page = browser.new_page()
    page.open(f"{address}/#token={jobs.CONSOLE_TOKEN}")
    page.wait_for("!!document.getElementById('who')?.textContent")
    page.evaluate(f"location.hash = {json.dumps(place)}")
    return page


def cpu_s(process: psutil.Process) -> float:
    """Returns the CPU time of a process and its children (seconds)."""
    return sum(
        times.user + times.system
        for one in (process, *process.children(recursive=True))
        for times in [one.cpu_times()]
    )


def measure_beside(recipe: str, run: str, seconds: float, browser: Browser) -> None:
    """Prints what a console takes while it shows a run and the list."""
    with jobs.console(recipe) as (address, job):
        run_page = open_page(browser, address, f"#/runs/{run}")
        list_page = open_page(browser, address, "#/runs")
        run_page.wait_for(f"/^[0-9]/.test({SAMPLES})")
        list_page.wait_for(f"{SHOWN} > 0")
        process = psutil.Process(job.pid)
        before, used = run_page.evaluate(SAMPLES), cpu_s(process)
        time.sleep(seconds)
        used, after = cpu_s(process) - used, run_page.evaluate(SAMPLES)
        memory = process.memory_info().rss / 1e6
    print(
        f"{run} beside the console, {seconds:.0f} s: samples {before} to {after} on its page; "
        f"{used:.2f} s of CPU time, {used / seconds:.2%} of a core; {memory:.0f} MB"
    )


def measure_list(folder: Path, runs: int, recipe: str, browser: Browser) -> None:
    """Prints how long a list of copies of a run takes, by itself and in a browser."""
    with tempfile.TemporaryDirectory() as place:
        first = Path(place) / "run-0000"
        shutil.copytree(folder, first, ignore=shutil.ignore_patterns("checkpoints", "ray"))
        for number in range(1, runs):
            shutil.copytree(first, Path(place) / f"run-{number:04}")
        steps = len((first / "trace.jsonl").read_text().splitlines())
        listing = RunList(place)
        for what in ("first look", "same again"):
            began, used = time.perf_counter(), time.process_time()
            found = listing.look()
            assert len(found) == runs
            print(
                f"{runs:,} runs of {steps} steps, {what}: {time.perf_counter() - began:.2f} s, "
                f"{time.process_time() - used:.2f} s of CPU time"
            )
        with jobs.console(recipe, "--storage", place) as (address, _):
            began = time.perf_counter()
            page = open_page(browser, address, "#/runs")
            page.wait_for(f"{SHOWN} === {runs}")
            print(
                "in a browser, from the address that a new console printed to the last row: "
                f"{time.perf_counter() - began:.2f} s"
            )
            page.evaluate("location.hash = '#/runs/run-0000'")
            page.wait_for(f"/^[0-9]/.test({SAMPLES})")
            began = time.perf_counter()
            page.evaluate("location.hash = '#/runs'")
            page.wait_for(f"{SHOWN} === {runs}")
            print(f"from the page of a run, by a click: {time.perf_counter() - began:.2f} s")


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--run", required=True, help="name of a run that trains")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    executable = chromium.find()
    if executable is None:
        sys.exit("error: no Chromium on this machine (Debian: apt-get install chromium)")
    folder = Path(load_recipe(options.recipe).storage) / options.run
    with tempfile.TemporaryDirectory() as profile, Browser(executable, Path(profile)) as browser:
        measure_beside(options.recipe, options.run, options.seconds, browser)
        measure_list(folder, options.runs, options.recipe, browser)


if __name__ == "__main__":
    main()

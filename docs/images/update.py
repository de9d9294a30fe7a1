#!/usr/bin/env python3
"""Takes the pictures of the docs anew: runs real jobs on a tiny model, and looks at their pages.

    python docs/images/update.py              minutes; `make pictures` is the same
    python docs/images/update.py --keep       the storage of last time, only the pictures are new

Chromium must be on the machine. A page that is wider than its window is an error.
"""

import argparse
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parent
ROOT = IMAGES.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from PIL import Image  # noqa: E402

from corpus.ingest import simulation  # noqa: E402
from cprec.config.recipe_file import load_recipe  # noqa: E402
from tests.integration import chromium, jobs  # noqa: E402
from tests.integration.chromium import Browser, Page  # noqa: E402

PLACE = Path(tempfile.gettempdir()) / "shop"
"""Where the jobs write; the pictures show this path."""
FILLED = PLACE.with_name("shop-filled")
"""The same before a run trains live."""

WIDTHS = (1280, 390)
MAX_HEIGHT = {1280: 2200, 390: 2600}
"""Rows of pixels of a picture, by its width; the rest of a longer page is left out."""
MAX_BYTES = 200_000

STABLE_END = 1200
"""Samples of the trunk before it anneals."""

HELD_OUT = "Games"
RECIPE: dict[str, Any] = {
    "run": "spring",
    "storage": f"{PLACE}/runs",
    "corpus": f"{PLACE}/corpus",
    "workers": 1,
    "data": {"root": f"{PLACE}/data", "domains": ["Garden", "Office"], "held_out": [HELD_OUT]},
    "simulate": {"users": 200, "items_per_domain": 60},
    "schedule": {"lr_max": 1e-2, "segment_samples": 256, "poll_samples": 256},
    "train": {"global_batch": 32, "micro_batch": 16, "max_samples": STABLE_END},
    "checkpoint": {"every_samples": 512},
    "evaluate": {"domain": HELD_OUT, "max_users": 120, "text": "jobs/recipes/demo.txt"},
    "finetune": {"max_samples": 100, "global_batch": 16, "validation_users": 50},
    "search": {"lrs": [1e-3], "winner_seeds": 1},
    # What was trained so briefly may rank no better than chance.
    "gate": {"above_chance": False, "alpha": 1e-9, "max_slice_drop": 1.0},
}


class Shop:
    """A small storage, and the jobs that fill it."""

    def __init__(self, place: Path) -> None:
        """Names its recipe."""
        self.place, self.recipe = place, place / "my.yaml"

    def write_data(self) -> None:
        """Writes the recipe, and a data root with two domains that it does not read yet."""
        self.place.mkdir(parents=True)
        self.recipe.write_text(json.dumps(RECIPE))
        domains = ["Garden", "Office", "Music", "Sports"]
        more = {"data.domains": domains, "data.format": "simulated"}
        recipe = load_recipe(str(self.recipe), more)
        simulation.write_data_root(recipe.data, recipe.simulate, recipe.seed)

    def start(self, job: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Starts a job."""
        line = [sys.executable, f"jobs/{job}.py", str(self.recipe), *arguments]
        return subprocess.Popen(line, cwd=ROOT)

    def run(self, job: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> None:
        """Runs a job to its end, which must have one of some exit codes."""
        code = self.start(job, *arguments).wait()
        if code not in codes:
            raise RuntimeError(f"{job} {arguments} ended with exit code {code}")

    def fill(self) -> None:
        """Makes two trunks, a branch, a fine-tuning, decisions of the gate and a failed run."""
        self.write_data()
        stable = f"{self.place}/runs/spring/checkpoints/{STABLE_END:012}-0"
        domains = ("--data.domains", "Garden,Office,Music")
        self.run("build_corpus")
        self.run("cpt")
        self.run("evaluate", "--evaluate.models", "base,popularity,candidate")
        self.run("promote", "--as", "anna")
        self.run("append_domain", "--data.domains", "Music", "--as", "anna")
        self.run("build_corpus", "--inspect")
        self.run(
            "cpt", "--run", "summer", *domains, "--continue-from", stable,
            "--train.max_samples", str(2 * STABLE_END),
        )  # fmt: skip
        self.run("evaluate", "--run", "summer", "--evaluate.models", "base,1,candidate")
        self.run("promote", "--run", "summer", "--as", "anna", codes=(0, 3))
        self.run("anneal", "--from", stable)
        self.run("tune_lr", "--run", "summer", "--finetune.domain", HELD_OUT)
        self.run("cpt", "--run", "absurd-rate", "--schedule.lr_max", "1e30", codes=(2,))

    @contextmanager
    def live_run(self) -> Iterator[None]:
        """A run that trains, which another domain joins."""
        held = ("--schedule.hold_open", "true", "--train.max_samples", "20000")
        with self.start("cpt", "--run", "live", *held) as process:
            try:
                self._wait_for_a_checkpoint(process)
                self.run("append_domain", "--run", "live", "--data.domains", "Sports")
                yield
            finally:
                process.send_signal(signal.SIGINT)
                process.wait()

    def _wait_for_a_checkpoint(self, process: "subprocess.Popen[bytes]") -> None:
        while not list((self.place / "runs" / "live").glob("checkpoints/*")):
            if process.poll() is not None:
                raise RuntimeError("the live run ended")
            time.sleep(1.0)


def take(page: Page, name: str, dark: bool = False) -> None:
    """Takes pictures of a page at both widths."""
    for width in WIDTHS:
        picture = Image.open(io.BytesIO(page.screenshot(width, dark=dark)))
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            raise RuntimeError(f"{name} is {wide} pixels wide in a window of {width}")
        picture = picture.crop((0, 0, width, min(picture.height, MAX_HEIGHT[width])))
        file = IMAGES / f"{name}-{width}.png"
        # 128 colours are enough for text and lines, and a third of the size.
        few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
        if file.stat().st_size > MAX_BYTES:
            raise RuntimeError(f"{file} has more than {MAX_BYTES:,} bytes")
        print(f"{file.name}: {width} x {picture.height}")


def sign_in(page: Page, address: str) -> None:
    """Opens the console, and waits until it has taken the token out of the address."""
    page.open(f"{address}/#token={jobs.CONSOLE_TOKEN}")
    page.wait_for("!!document.getElementById('who')?.textContent")


def go(page: Page, place: str, sign: str) -> None:
    """Goes to a page of the console, and waits for what a selector finds there."""
    page.evaluate(f"location.hash = {json.dumps(place)}")
    page.wait_for(f"!!document.querySelector({json.dumps(sign)})")
    time.sleep(2.0)  # the rest of it is drawn


def take_console(page: Page) -> None:
    """Takes the pages of the console, while a run trains."""
    go(page, "#/runs", ".runs tbody tr:nth-child(5)")
    take(page, "console-runs")
    go(page, "#/runs/live", ".timeline li:nth-child(4)")
    take(page, "console-run")
    take(page, "console-run-dark", dark=True)
    go(page, "#/runs/absurd-rate", ".timeline [data-tone=bad]")
    take(page, "console-failed")
    go(page, "#/models", ".lineage svg")
    take(page, "console-models")
    take(page, "console-models-dark", dark=True)
    go(page, "#/try", "#search-user")
    page.evaluate(f"document.getElementById('try-domain').value = '{HELD_OUT}'")
    page.click("#search-user")
    page.click(".found button")
    page.wait_for("!!document.getElementById('try-candidates').value")
    page.click(".try .primary")
    page.wait_for("document.querySelectorAll('.ranking li').length > 20")
    take(page, "console-try")


def main() -> None:
    """Fills the storage if it is to be new, and takes all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="take the storage of last time")
    is_kept = parser.parse_args().keep
    executable = chromium.find()
    if executable is None:
        sys.exit("error: no Chromium on this machine (Debian: apt-get install chromium)")
    shop = Shop(PLACE)
    shutil.rmtree(PLACE, ignore_errors=True)
    if is_kept:
        shutil.copytree(FILLED, PLACE)
    else:
        shop.fill()
        shutil.copytree(PLACE, FILLED, dirs_exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, Browser(executable, Path(profile)) as browser:
        page = browser.new_page()
        with shop.live_run(), jobs.console(shop.recipe, "--as", "anna") as (address, _):
            sign_in(page, address)
            take_console(page)
        nothing = ("--storage", f"{PLACE}/nothing", "--corpus", f"{PLACE}/no-corpus")
        with jobs.console(shop.recipe, "--as", "anna", *nothing) as (address, _):
            sign_in(page, address)
            page.wait_for("document.querySelector('.empty')?.hidden === false")
            take(page, "console-empty")
        page.open(f"file://{PLACE}/runs/summer/report.html")
        take(page, "report")
        page.open(f"file://{PLACE}/corpus/statistics.html")
        take(page, "corpus")


if __name__ == "__main__":
    main()

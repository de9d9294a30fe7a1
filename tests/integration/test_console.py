"""The console in a real browser, beside a run that trains: what is seen, and what clicks do.

Chromium is not on PyPI, so without one on the machine the test in the browser is skipped. On
Debian, `apt-get install chromium` brings it.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus.ingest import simulation
from cprec.config.recipe_file import load_recipe
from cprec.tracking.registry import Registry
from cprec.workflows.champion import set_champion
from tests.faults.injection import environment, fault
from tests.integration import chromium, jobs
from tests.integration.chromium import Browser, Page

TOKEN = jobs.CONSOLE_TOKEN
MARKUP = "<img src=x onerror=\"document.title='owned'\">"
"""Text that would be markup if data became any."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of two domains, a third in the data root, and a run that failed."""
    place = tmp_path_factory.mktemp("console")
    data = {"root": f"{place}/shoppers", "held_out": ["Games"]}
    common: dict[str, Any] = {
        "run": "trunk",
        "schedule": {"lr_max": 1e-3, "segment_samples": 256, "poll_samples": 64},
        "train": {"global_batch": 32, "zero_stage": 0},
        "checkpoint": {"every_samples": 256},
        # What was trained so briefly ranks no better than chance.
        "gate": {"above_chance": False, "min_samples": 1, "max_slice_drop": 1.0, "alpha": 1e-9},
        "evaluate": {"max_users": 10},
    }
    path = jobs.recipe(
        place,
        data={**data, "format": "simulated", "domains": ["Garden", "Office", "Sports"]},
        **common,
    )
    everything = load_recipe(str(path))
    simulation.write_data_root(everything.data, everything.simulate, everything.seed)
    jobs.recipe(place, data={**data, "domains": ["Garden", "Office"]}, **common)
    jobs.run_here("build_corpus", path)
    failed = place / "runs" / f"failed {MARKUP}"
    failed.mkdir(parents=True)
    event = {"event": "failed", "samples": 64, "time": 1.0, "because": f"no room {MARKUP}"}
    (failed / "events.jsonl").write_text(f"{json.dumps(event)}\n")
    return place


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for which the run waits at its fifth step."""
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def trunk(shop: Path, gate: Path) -> "Iterator[subprocess.Popen[str]]":
    """A run that trains and is held open."""
    hold = ("--schedule.hold_open", "true", "--workers", "1")
    wait = environment({**fault("wait", 5, gate), "rank": 0})
    process = jobs.start("cpt", shop / "recipe.yaml", *hold, environment=wait)
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def events(place: Path, name: str) -> list[dict[str, Any]]:
    """Returns the events of the run that have a name."""
    lines = jobs.lines(place / "runs" / "trunk" / "events.jsonl")
    return [event for event in lines if event["event"] == name]


SAMPLES = "(document.querySelector('.figures dd')?.textContent ?? '')"
"""The samples on the page of a run, as JavaScript."""


def _samples_shown(page: Page) -> int:
    return int(page.wait_for(f"/^[0-9]/.test({SAMPLES}) && {SAMPLES}").replace(",", ""))


@pytest.mark.skipif(
    chromium.find() is None,
    reason="no Chromium on this machine, and PyPI has none (Debian: apt-get install chromium)",
)
def test_a_person_sees_a_run_train_and_steers_it(
    shop: Path, trunk: "subprocess.Popen[str]", gate: Path, tmp_path: Path
) -> None:
    executable = chromium.find()
    assert executable is not None
    console = jobs.console(shop / "recipe.yaml", "--console.refresh_s", "0.5")
    with console as (url, _), Browser(executable, tmp_path) as browser:
        stranger = browser.new_page()
        stranger.open(f"{url}/#token=a-wrong-token-of-some-length")
        stranger.wait_for_text("This token is not the console's.")
        assert str(shop) not in stranger.text()

        page = browser.new_page()
        page.open(f"{url}/#token={TOKEN}")
        page.wait_for_text("failed <img")
        assert TOKEN not in page.evaluate("location.href")
        assert page.evaluate("document.querySelectorAll('img').length") == 0
        page.wait_for(
            "[...document.querySelectorAll('.state')].some(e => "
            "['training', 'waiting'].includes(e.dataset.state))"
        )
        shutil.rmtree(next((shop / "runs").glob("failed *")))
        page.wait_for("!document.body.innerText.includes('failed <img')")
        _read_axes(page)
        page.evaluate("location.hash = '#/runs/trunk'")
        page.wait_for("document.querySelectorAll('.plot svg').length >= 4")
        _release_and_hold_by_click(page, shop)
        before = _samples_shown(page)
        gate.touch()
        _append_by_click(page, shop)
        page.wait_for(f"Number({SAMPLES}.replaceAll(',', '')) > {before}")
        irrevocable = "this cannot be taken back"
        _act_by_click(page, shop, "anneal", "annealing_called", irrevocable, "anneals from sample")
        _, err = trunk.communicate(timeout=jobs.LIMIT_S)
        assert trunk.returncode == 0, err
        page.wait_for_text("Every planned sample was trained exactly once.")
        _promote_and_roll_back_by_click(page, shop)
        _try_models(page)
        assert page.evaluate("document.title") == "cprec console"
        assert page.complaints == []
        assert {re.sub(r"(?<=\d)/.*", "", address) for address in page.urls} == {url}


def _read_axes(page: Page) -> None:
    """Numbers of an axis differ where their values do."""
    for values, step, expected in [
        ([0, 2.5e-4, 1.5e-4, 1.4e9], 0, ["0", "2.5e-4", "1.5e-4", "1.4e+9"]),
        ([2.302, 2.303], 0.001, ["2.302", "2.303"]),
        ([12340, 12360], 20, ["12.34k", "12.36k"]),
        ([1500, 1500.2, 1500.4], 0.2, ["1,500", "1,500.2", "1,500.4"]),
        ([500000, 1e6, 2.5e6], 5e5, ["500k", "1M", "2.5M"]),
    ]:
        shown = f"{json.dumps(values)}.map((value) => brief(value, {step}))"
        axis = f"import('/static/dom.js').then(({{ brief }}) => {shown})"
        assert page.evaluate(axis) == expected


def _release_and_hold_by_click(page: Page, shop: Path) -> None:
    """Takes the hold of the run away, and gives it back."""
    _act_by_click(page, shop, "release", "released", "no longer waits", "stable phase is trained")
    _act_by_click(page, shop, "hold", "held", "waits there for new domains", "until released")


def _act_by_click(page: Page, shop: Path, act: str, event: str, effect: str, answer: str) -> None:
    """Does what a button asks for: not before it is confirmed, and with who did it."""
    page.click(f"[data-act={act}]")
    page.wait_for_text(effect)
    assert events(shop, event) == []
    page.click(f"[data-confirm={act}]")
    page.wait_for_text(answer)
    [done] = events(shop, event)
    assert done["by"].startswith("console (")
    page.evaluate("document.getElementById('dialog').close()")


def _append_by_click(page: Page, shop: Path) -> None:
    page.click("[data-act=append]")
    page.wait_for_text("trunk takes it up at the first segment")
    assert page.evaluate("document.getElementById('domain').value") == "Sports"
    page.click("[data-step=preview]")
    page.wait_for_text("Checked: nothing was written yet.")
    assert "would make version 1" in page.text()
    assert events(shop, "version_announced") == []
    page.click("[data-step=commit]")
    page.wait_for_text("Done.")
    [announced] = events(shop, "version_announced")
    assert announced["by"].startswith("console (")
    assert [event["version"] for event in events(shop, "corpus_version_adopted")] == [0, 1]
    page.evaluate("document.getElementById('dialog').close()")
    page.wait_for_text("Corpus version 1 joined")


def _promote_and_roll_back_by_click(page: Page, shop: Path) -> None:
    registry = Registry.from_recipe(load_recipe(str(shop / "recipe.yaml")))
    [first] = registry.versions()
    stable = jobs.lines(shop / "runs" / "trunk" / "events.jsonl")
    saved = [event["checkpoint"] for event in stable if event["event"] == "checkpoint_saved"]
    kept = next(uri for uri in saved if uri != first.checkpoint and Path(uri).exists())
    registry.register(kept, {**first.tags, "run": f"{shop}/runs/{MARKUP}"})
    set_champion(registry, 1)
    page.evaluate("location.hash = '#/models'")
    page.wait_for_text("trunk trunk, from the base")
    page.wait_for("document.querySelectorAll('.lineage [data-kind=trunk]').length === 2")
    page.click("#version-cprec-2 [data-act=promote]")
    page.wait_for_text("The gate compares it with the champion")
    _check_then_commit(page, registry, 1)
    page.wait_for("!!document.querySelector('#version-cprec-2 [data-alias=champion]')")
    page.click("[data-act=rollback]")
    page.wait_for_text("The champion before the present one becomes the champion again")
    _check_then_commit(page, registry, 2)
    page.wait_for("!!document.querySelector('#version-cprec-1 [data-alias=champion]')")
    decisions = [d for d in events(shop, "promotion_decided") if d["by"].startswith("console (")]
    assert [(d["version"], d["promoted"]) for d in decisions][-1] == (2, False)
    assert "rolled back from version 2" in page.text()
    assert page.evaluate("document.querySelectorAll('img').length") == 0


def _check_then_commit(page: Page, registry: Registry, champion: int) -> None:
    """Makes the dry run of a dialog, which changes no alias, and then what it is about."""
    page.click("[data-step=preview]")
    page.wait_for_text("Checked: nothing was written yet.")
    assert registry.aliases()["champion"] == champion
    page.click("[data-step=commit]")
    page.wait_for_text("Done.")
    assert registry.aliases()["champion"] == 3 - champion
    page.evaluate("document.getElementById('dialog').close()")


def _try_models(page: Page) -> None:
    page.evaluate("location.hash = '#/try'")
    page.click("#search-user")
    page.click(".found button")
    page.wait_for("!!document.getElementById('try-candidates').value")
    add = f"document.getElementById('try-history').value += {json.dumps(chr(10) + MARKUP)}"
    page.evaluate(add)
    page.click(".try button[type=submit]")
    page.wait_for("document.querySelectorAll('.ranking').length === 2")
    shares = "[...document.querySelectorAll('.ranking:first-child .share')]"
    total = page.evaluate(f"{shares}.reduce((sum, e) => sum + parseFloat(e.textContent), 0)")
    assert abs(total - 100) < 2
    candidates = f"document.getElementById('try-candidates').value = {json.dumps(MARKUP)}"
    page.evaluate(candidates)
    page.click(".try button[type=submit]")
    page.wait_for_text("a ranking takes 2 at least")
    assert page.evaluate("document.querySelectorAll('img').length") == 0

"""Processes of a run are killed -9; each planned sample is trained once all the same, at its rate, bit for bit (matrices: faults 2-5, 9, 11)."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration import jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run without a fault."""
    jobs.run("cpt", jobs.recipe(place))
    return place / "runs" / "small"


def history(folder: Path) -> list[dict[str, Any]]:
    same = ("step", "samples", "lr", "loss", "ids_digest", "phase", "sources")
    return [{key: row[key] for key in same} for row in jobs.lines(folder / "trace.jsonl")]


def complete(folder: Path) -> int:
    return len([e for e in jobs.lines(folder / "events.jsonl") if e["event"] == "checkpoint_saved"])


def wait_for(process: "Any", reached: Callable[[], bool]) -> None:
    end = time.monotonic() + jobs.LIMIT_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def kill(driver: int, name: str) -> None:
    """kill -9 the first process below a driver whose title begins with a name."""
    found = [p for p in psutil.Process(driver).children(recursive=True) if (p.cmdline() or [""])[0].startswith(name)]
    assert found, f"no process {name}"
    found[0].kill()


def test_a_worker_and_then_the_controller_are_killed(whole: Path, place: Path) -> None:
    folder = place / "runs" / "kills"
    process = jobs.start("cpt", place / "recipe.yaml", "--run", "kills")
    wait_for(process, lambda: complete(folder) >= 1)
    kill(process.pid, "ray::RayTrainWorker")
    wait_for(process, lambda: len([e for e in jobs.lines(folder / "events.jsonl") if e["event"] == "resumed"]) >= 1)
    kill(process.pid, "ray::ControllerShell")
    _, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 0, err
    audit = json.loads((folder / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"]) == (0, 0)
    assert len([e for e in jobs.lines(folder / "events.jsonl") if e["event"] == "resumed"]) >= 2
    assert history(folder) == history(whole)


def test_a_corrupt_newest_checkpoint_is_named_and_the_one_before_used(whole: Path, place: Path) -> None:
    folder = place / "runs" / "rotten"
    process = jobs.start("cpt", place / "recipe.yaml", "--run", "rotten")
    jobs.kill_when(process, lambda: len(list(folder.glob("checkpoints/*/manifest.json"))) >= 2)
    newest = max((folder / "checkpoints").glob("*/manifest.json")).parent
    victim = newest / "trainer" / "optimizer.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    jobs.run("cpt", place / "recipe.yaml", "--run", "rotten")
    ignored = [e for e in jobs.lines(folder / "events.jsonl") if e["event"] == "checkpoint_ignored"]
    assert any("optimizer.safetensors: sha256" in e["because"] for e in ignored)
    assert history(folder) == history(whole)

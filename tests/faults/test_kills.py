"""Processes of a run are killed or told to end; each planned sample is trained once all the same, at its rate, bit for bit.

Faults of the matrices: 2-5, 9, 11, 28.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil

from tests.integration import jobs


def history(folder: Path) -> list[dict[str, Any]]:
    same = ("step", "samples", "lr", "loss", "ids_digest", "phase", "sources")
    return [{key: row[key] for key in same} for row in jobs.lines(folder / "trace.jsonl")]


def complete(folder: Path) -> int:
    return len([e for e in jobs.lines(folder / "events.jsonl") if e["event"] == "checkpoint_saved"])


def kill(driver: int, name: str) -> None:
    """kill -9 the first process below a driver whose title begins with a name."""
    found = [p for p in psutil.Process(driver).children(recursive=True) if (p.cmdline() or [""])[0].startswith(name)]
    assert found, f"no process {name}"
    found[0].kill()


def test_a_worker_and_then_the_controller_are_killed(whole: Path, place: Path) -> None:
    folder = place / "runs" / "kills"
    process = jobs.start("cpt", place / "recipe.yaml", "--run", "kills")
    jobs.wait_for(process, lambda: complete(folder) >= 1)
    kill(process.pid, "ray::RayTrainWorker")
    jobs.wait_for(process, lambda: len([e for e in jobs.lines(folder / "events.jsonl") if e["event"] == "resumed"]) >= 1)
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


def test_ctrl_c_saves_a_checkpoint_and_leaves_nobody_behind(whole: Path, place: Path) -> None:
    folder, recipe = place / "runs" / "stopped", place / "recipe.yaml"
    process = jobs.start("cpt", recipe, "--run", "stopped")
    jobs.wait_for(process, lambda: complete(folder) >= 1)
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to everybody in the foreground
    out, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 130, err
    assert "interrupted: saving a checkpoint" in out
    assert "the same command goes on" in err
    assert "Traceback" not in out + err
    _, left = psutil.wait_procs(below, timeout=30)
    assert not left
    newest = max(int(manifest.parent.name.split("-")[0]) for manifest in folder.glob("checkpoints/*/manifest.json"))
    [stopped] = [e["samples"] for e in jobs.lines(folder / "events.jsonl") if e["event"] == "stopped"]
    assert newest == jobs.lines(folder / "trace.jsonl")[-1]["samples"] + 32 >= stopped  # nothing that was trained is lost
    assert f"resuming stopped from {newest:,} samples" in jobs.run("cpt", recipe, "--run", "stopped").stdout
    assert history(folder) == history(whole)

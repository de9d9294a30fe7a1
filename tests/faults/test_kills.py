"""Processes of a run are killed or told to end; each planned sample is trained once all the same, at its rate, bit for bit."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from cprec.runs import checkpoint
from cprec.runs.json_lines import read_events
from cprec.tracking.figures import perplexities
from tests.integration import jobs


def history(folder: Path) -> list[dict[str, Any]]:
    same = ("step", "samples", "lr", "loss", "ids_digest", "phase", "sources")
    return [{key: row[key] for key in same} for row in jobs.lines(folder / "trace.jsonl")]


def told(folder: Path, event: str) -> list[dict[str, Any]]:
    """The events of one kind that a run has told so far."""
    return [e for e in jobs.lines(folder / "events.jsonl") if e["event"] == event]


@pytest.fixture(scope="module")
def haunted(place: Path) -> Path:
    """The small run: a worker is killed, then the controller, then the driver; its newest checkpoint rots; the same command again. Its folder."""
    folder, recipe = place / "runs" / "haunted", place / "recipe.yaml"
    process = jobs.start("cpt", recipe, "--run", "haunted")
    jobs.wait_for(process, lambda: len(told(folder, "checkpoint_saved")) >= 1)
    jobs.below(process.pid, "ray::RayTrainWorker")[0].kill()
    jobs.wait_for(process, lambda: len(told(folder, "resumed")) >= 1)
    jobs.below(process.pid, "ray::ControllerActor")[0].kill()
    jobs.wait_for(process, lambda: len(told(folder, "resumed")) >= 2)
    saved = len(told(folder, "checkpoint_saved"))
    jobs.kill_when(process, lambda: len(told(folder, "checkpoint_saved")) > saved)

    newest = max((folder / "checkpoints").glob("*/manifest.json")).parent
    victim = newest / "trainer" / "optimizer.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    assert "resuming haunted from" in jobs.run("cpt", recipe, "--run", "haunted").stdout
    return folder


def test_whoever_is_killed_each_sample_is_trained_once(haunted: Path) -> None:
    audit = json.loads((haunted / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"], audit["trained"]) == (0, 0, audit["planned"])
    assert len(told(haunted, "resumed")) >= 3


def test_whoever_is_killed_the_run_goes_on_bit_for_bit(whole: Path, haunted: Path) -> None:
    assert history(haunted) == history(whole)
    assert perplexities(read_events(str(haunted))) == perplexities(read_events(str(whole)))
    ends = [
        checkpoint.load_training_state(str(max((folder / "checkpoints").iterdir())))
        for folder in (whole, haunted)
    ]
    assert all(
        bool((ends[0].weights[name] == tensor).all()) for name, tensor in ends[1].weights.items()
    )


def test_a_corrupt_newest_checkpoint_is_named_and_the_one_before_used(haunted: Path) -> None:
    assert any(
        "optimizer.safetensors: sha256" in event["because"]
        for event in told(haunted, "checkpoint_ignored")
    )


def test_ctrl_c_saves_a_checkpoint_and_leaves_nobody_behind(whole: Path, place: Path) -> None:
    folder, recipe = place / "runs" / "stopped", place / "recipe.yaml"
    process = jobs.start("cpt", recipe, "--run", "stopped")
    jobs.wait_for(process, lambda: len(told(folder, "checkpoint_saved")) >= 1)
    below = jobs.below(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to everybody in the foreground
    out, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 130, err
    assert "interrupted: saving a checkpoint" in out
    assert "the same command goes on" in err
    assert "Traceback" not in out + err
    _, left = psutil.wait_procs(below, timeout=30)
    assert not left
    newest = max(
        int(manifest.parent.name.split("-")[0])
        for manifest in folder.glob("checkpoints/*/manifest.json")
    )
    [stopped] = [event["samples"] for event in told(folder, "stopped")]
    assert (
        newest == jobs.lines(folder / "trace.jsonl")[-1]["samples"] + 32 >= stopped
    )  # nothing that was trained is lost
    assert (
        f"resuming stopped from {newest:,} samples"
        in jobs.run("cpt", recipe, "--run", "stopped").stdout
    )
    assert history(folder) == history(whole)

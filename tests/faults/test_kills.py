"""Processes of a run are killed or stopped; each planned sample is still trained exactly once.

The trace and the weights are bit for bit those of the run without a fault.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from cprec.runs import checkpoint
from cprec.runs.run_records import read_run_records
from tests.integration import jobs


def history(folder: Path) -> list[dict[str, Any]]:
    """Returns what must be equal in the traces of two runs of the same plan."""
    keys = ("step", "samples", "lr", "loss", "ids_digest", "phase", "sources")
    return [{key: row[key] for key in keys} for row in jobs.lines(folder / "trace.jsonl")]


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the events of one kind that a run has recorded so far."""
    return [event for event in jobs.lines(folder / "events.jsonl") if event["event"] == kind]


@pytest.fixture(scope="module")
def haunted(place: Path) -> Path:
    """The folder of the small run after four faults, trained to its end.

    A worker is killed, then the controller, then the driver. Then a bit of the newest checkpoint
    flips, and the same command resumes the run.
    """
    folder = place / "runs" / "haunted"
    recipe = place / "recipe.yaml"
    process = jobs.start("cpt", recipe, "--run", "haunted")
    jobs.wait_for(process, lambda: len(events_of(folder, "checkpoint_saved")) >= 1)
    jobs.below(process.pid, "ray::RayTrainWorker")[0].kill()
    jobs.wait_for(process, lambda: len(events_of(folder, "resumed")) >= 1)
    jobs.below(process.pid, "ray::ControllerActor")[0].kill()
    jobs.wait_for(process, lambda: len(events_of(folder, "resumed")) >= 2)
    saved = len(events_of(folder, "checkpoint_saved"))
    jobs.kill_when(process, lambda: len(events_of(folder, "checkpoint_saved")) > saved)

    newest = max((folder / "checkpoints").glob("*/manifest.json")).parent
    victim = newest / "trainer" / "optimizer.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    assert "resuming haunted from" in jobs.run("cpt", recipe, "--run", "haunted").stdout
    return folder


def test_whichever_process_is_killed_each_sample_is_trained_once(haunted: Path) -> None:
    audit = json.loads((haunted / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"], audit["trained"]) == (0, 0, audit["planned"])
    assert len(events_of(haunted, "resumed")) >= 3


def test_whichever_process_is_killed_the_run_continues_bit_for_bit(
    whole: Path, haunted: Path
) -> None:
    assert history(haunted) == history(whole)
    assert read_run_records(str(haunted)).perplexities == read_run_records(str(whole)).perplexities
    without_fault, with_faults = (
        checkpoint.load_training_state(str(max((folder / "checkpoints").iterdir()))).weights
        for folder in (whole, haunted)
    )
    assert all(bool((without_fault[name] == tensor).all()) for name, tensor in with_faults.items())


def test_a_corrupt_checkpoint_is_reported_and_the_one_before_it_is_used(haunted: Path) -> None:
    assert any(
        "optimizer.safetensors: sha256" in event["because"]
        for event in events_of(haunted, "checkpoint_ignored")
    )


def test_ctrl_c_saves_a_checkpoint_and_leaves_no_process_behind(whole: Path, place: Path) -> None:
    folder = place / "runs" / "stopped"
    recipe = place / "recipe.yaml"
    process = jobs.start("cpt", recipe, "--run", "stopped")
    jobs.wait_for(process, lambda: len(events_of(folder, "checkpoint_saved")) >= 1)
    descendants = jobs.below(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # like a terminal: to all processes in the foreground
    out, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 130, err
    assert "interrupted: saving a checkpoint" in out
    assert "the same command goes on" in err
    assert "Traceback" not in out + err
    _, alive = psutil.wait_procs(descendants, timeout=30)
    assert not alive
    newest = max(
        int(manifest.parent.name.split("-")[0])
        for manifest in folder.glob("checkpoints/*/manifest.json")
    )
    [stopped] = [event["samples"] for event in events_of(folder, "stopped")]
    # Nothing that was trained is lost: the checkpoint is at the end of the last step (32 samples).
    last_step = jobs.lines(folder / "trace.jsonl")[-1]
    assert newest == last_step["samples"] + 32 >= stopped
    resumed = jobs.run("cpt", recipe, "--run", "stopped")
    assert f"resuming stopped from {newest:,} samples" in resumed.stdout
    assert history(folder) == history(whole)

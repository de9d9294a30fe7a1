"""Processes of a run are killed or stopped; each planned sample is still trained exactly once.

The trace and the weights are bit for bit those of the run without a fault.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from cprec.runs import checkpoint
from cprec.runs.run_records import read_run_records
from tests.faults.injection import environment, fault
from tests.integration import jobs


def history(folder: Path) -> list[dict[str, Any]]:
    """Returns what must be equal in the traces of two runs of the same plan."""
    keys = ("step", "samples", "lr", "loss", "ids_digest", "phase", "sources")
    return [{key: row[key] for key in keys} for row in jobs.lines(folder / "trace.jsonl")]


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the events of one kind that a run has recorded so far."""
    return [event for event in jobs.lines(folder / "events.jsonl") if event["event"] == kind]


def kill_session(process: "subprocess.Popen[str]", name: str) -> str:
    """Kills a process of Ray that a driver's session cannot do without.

    Args:
        process: The driver.
        name: Name of the process to kill.

    Returns:
        What the driver wrote to stderr. It has ended with exit code 2, and no worker outlives it.
    """
    descendants = jobs.below(process.pid)
    [victim] = [each for each in descendants if each.name() == name]
    # The raylet's two agents look for the GCS for a minute before they end.
    descendants = [each for each in descendants if not each.name().endswith("Agent")]
    victim.kill()
    _, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 2, err
    _, alive = psutil.wait_procs(descendants, timeout=60)
    assert not alive
    return err


@pytest.fixture(scope="module")
def last_words() -> dict[str, str]:
    """What the driver wrote to stderr when a process of its session was killed, by its name."""
    return {}


@pytest.fixture(scope="module")
def haunted(
    place: Path, whole: Path, last_words: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the small run after seven faults, trained to its end.

    A worker dies in the first step, before there is a checkpoint. Another one is killed later, then
    the controller, then the raylet, which ends the driver. Then a bit of the newest checkpoint
    flips, and the same command resumes the run. The GCS is killed, and the same command resumes it
    again. A worker dies in the annealing phase.
    """
    folder = place / "runs" / "haunted"
    recipe = place / "recipe.yaml"
    markers = tmp_path_factory.mktemp("markers")
    annealing = [row["phase"] for row in jobs.lines(whole / "trace.jsonl")].index("annealing")
    deaths = environment(
        fault("die", 0, markers / "warmup"), fault("die", annealing + 1, markers / "annealing")
    )
    command = (recipe, "--run", "haunted", "--train.max_failures", "5")
    process = jobs.start("cpt", *command, environment=deaths)
    jobs.wait_for(process, lambda: len(events_of(folder, "checkpoint_saved")) >= 1)
    jobs.below(process.pid, "ray::RayTrainWorker")[0].kill()
    jobs.wait_for(process, lambda: len(events_of(folder, "resumed")) >= 1)
    jobs.below(process.pid, "ray::ControllerActor")[0].kill()
    jobs.wait_for(process, lambda: len(events_of(folder, "resumed")) >= 2)
    saved = len(events_of(folder, "checkpoint_saved"))
    jobs.wait_for(process, lambda: len(events_of(folder, "checkpoint_saved")) > saved)
    last_words["raylet"] = kill_session(process, "raylet")

    newest = max((folder / "checkpoints").glob("*/manifest.json")).parent
    victim = newest / "trainer" / "optimizer.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    process = jobs.start("cpt", *command, environment=deaths)
    jobs.wait_for(process, lambda: len(events_of(folder, "resumed")) >= 3)
    last_words["gcs_server"] = kill_session(process, "gcs_server")
    ended = jobs.run("cpt", *command, environment=deaths)
    assert "resuming haunted from" in ended.stdout
    assert (markers / "warmup").exists()
    assert (markers / "annealing").exists()
    return folder


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_the_death_of_a_session_is_a_fault_that_says_what_died(
    haunted: Path, last_words: dict[str, str], name: str
) -> None:
    [line] = [line for line in last_words[name].splitlines() if line.startswith("fault: ")]
    assert f"{name}.out" in line
    assert "the same command goes on from the last checkpoint" in line


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


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Interrupts a driver as a terminal does: all processes in the foreground."""
    os.killpg(process.pid, signal.SIGINT)


def test_ctrl_c_saves_a_checkpoint_and_leaves_no_process_behind(
    whole: Path, place: Path, tmp_path: Path
) -> None:
    """The second one ends the run at once, though a worker hangs and nothing can be saved."""
    folder = place / "runs" / "stopped"
    recipe = place / "recipe.yaml"
    process = jobs.start("cpt", recipe, "--run", "stopped")
    jobs.wait_for(process, lambda: len(events_of(folder, "checkpoint_saved")) >= 1)
    descendants = jobs.below(process.pid)
    interrupt(process)
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

    hangs = environment(fault("hang", 0, tmp_path / "hang"))
    process = jobs.start("cpt", recipe, "--run", "stopped", environment=hangs)
    jobs.wait_for(process, (tmp_path / "hang").exists)
    descendants = jobs.below(process.pid)
    interrupt(process)
    assert process.stdout is not None
    assert any("interrupt again to end at once" in line for line in process.stdout)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    interrupt(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(descendants, timeout=30)
    assert not alive

    resumed = jobs.run("cpt", recipe, "--run", "stopped")
    assert f"resuming stopped from {newest:,} samples" in resumed.stdout
    assert history(folder) == history(whole)

"""Processes of a run fail, are killed or stopped; each sample is still trained exactly once.

The trace and the weights are bit for bit those of the run without a fault.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    names = jobs.names_below(process.pid)
    [victim] = [each for each in names if names[each] == name]
    # The raylet's two agents look for the GCS for a minute before they end.
    descendants = [each for each in names if not names[each].endswith("Agent")]
    victim.kill()
    _, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 2, err
    _, alive = psutil.wait_procs(descendants, timeout=60)
    assert not alive
    return err


SESSION = """
import time
from cluster.ray_session import ray_session
with ray_session("local", 1):
    print("up", flush=True)
    time.sleep(600)
"""
"""A driver that has a session of Ray and does nothing else."""

SLOW = fault("slow", 0, None)
"""Each step takes a second, so that a run is not over before what is to happen to it."""


@dataclass(frozen=True)
class HauntedRun:
    """A run after many faults, trained to its end.

    Attributes:
        folder: Its folder.
        recipe: Its recipe.
        markers: Folder with a file for each injected fault that happened, named as its kind.
        tracking: Its database of MLflow.
        said: What drivers that ended early wrote to stdout and stderr, by what ended them.
    """

    folder: Path
    recipe: Path
    markers: Path
    tracking: Path
    said: dict[str, str] = field(default_factory=dict)

    def start(
        self, *faults: dict[str, Any], failures: int = 0, options: Sequence[str] = ()
    ) -> "subprocess.Popen[str]":
        """Starts the driver, with options of the job; its workers have the given faults."""
        return jobs.start(
            "cpt",
            self.recipe,
            "--run",
            self.folder.name,
            "--mlflow.uri",
            f"sqlite:///{self.tracking}",
            "--train.max_failures",
            str(failures),
            *options,
            environment=environment(*faults),
        )

    def fault(self, kind: str, step: int, name: str = "") -> dict[str, Any]:
        """Returns a fault of rank 1 that happens once."""
        return fault(kind, step, self.markers / (name or kind))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Returns the events of one kind so far."""
        return events_of(self.folder, kind)

    def wait_for_more(self, process: "subprocess.Popen[str]", kind: str) -> None:
        """Waits for one more event of a kind."""
        before = len(self.events(kind))
        jobs.wait_for(process, lambda: len(self.events(kind)) > before)


@pytest.fixture(scope="module")
def haunted(place: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> HauntedRun:
    """The small run, which is started five times until it is trained to its end.

    1. Rank 1 dies in the first step, before there is a checkpoint; dies while rank 0 saves; and
       hangs, which is one failure more than allowed.
    2. The controller is killed, then the raylet. A bit of the newest checkpoint flips.
    3. Ctrl-C, once.
    4. A worker hangs; Ctrl-C, twice.
    5. A worker dies in the annealing phase.
    """
    folder = place / "runs" / "haunted"
    tracking = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    run = HauntedRun(folder, place / "recipe.yaml", tmp_path_factory.mktemp("markers"), tracking)
    process = run.start(
        run.fault("die", 0),
        run.fault("die while rank 0 saves", 3),
        run.fault("hang", 5),
        failures=2,
        options=("--train.collective_timeout_s", "20"),  # after which the hang is a failure
    )
    # Three groups of workers are started one after the other.
    _, run.said["failures"] = process.communicate(timeout=3 * jobs.LIMIT_S)
    assert process.returncode == 2, run.said["failures"]
    run.said["MLflow"] = mlflow_status(run)

    process = run.start(SLOW, failures=1)
    run.wait_for_more(process, "checkpoint_saved")
    jobs.below(process.pid, "ray::ControllerActor")[0].kill()
    run.wait_for_more(process, "resumed")
    run.wait_for_more(process, "checkpoint_saved")
    run.said["raylet"] = kill_session(process, "raylet")

    newest = max((folder / "checkpoints").glob("*/manifest.json")).parent
    victim = newest / "trainer" / "optimizer.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    process = run.start(SLOW)
    run.wait_for_more(process, "checkpoint_saved")
    descendants = jobs.below(process.pid)
    interrupt(process)
    run.said["one Ctrl-C"] = end_of(process, 130, descendants)
    check_that_nothing_is_lost(run)

    process = run.start(run.fault("hang", 0, "hang again"))
    jobs.wait_for(process, (run.markers / "hang again").exists)
    descendants = jobs.below(process.pid)
    interrupt(process)
    assert process.stdout is not None
    assert any("interrupt again to end at once" in line for line in process.stdout)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    interrupt(process)
    run.said["two Ctrl-C"] = end_of(process, 130, descendants)

    annealing = [row["phase"] for row in jobs.lines(whole / "trace.jsonl")].index("annealing")
    process = run.start(run.fault("die", annealing + 1, "die in annealing"), failures=1)
    out, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 0, err
    assert "resuming haunted from" in out
    return run


def mlflow_status(run: HauntedRun) -> str:
    """Returns the state of the run in MLflow."""
    with sqlite3.connect(run.tracking) as database:
        query = "SELECT status FROM runs WHERE name = ?"
        [(status,)] = database.execute(query, [run.folder.name]).fetchall()
    return str(status)


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Interrupts a driver as a terminal does: all processes in the foreground."""
    os.killpg(process.pid, signal.SIGINT)


def end_of(process: "subprocess.Popen[str]", code: int, descendants: list[psutil.Process]) -> str:
    """Returns what a driver said that ends with an exit code; none of its processes outlives it."""
    out, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == code, err
    assert "Traceback" not in out + err
    _, alive = psutil.wait_procs(descendants, timeout=60)
    assert not alive
    return out + err


def check_that_nothing_is_lost(run: HauntedRun) -> None:
    """Checks that the newest checkpoint is at the end of the last step."""
    manifests = (run.folder / "checkpoints").glob("*/manifest.json")
    newest = max(int(manifest.parent.name.split("-")[0]) for manifest in manifests)
    [stopped] = [event["samples"] for event in run.events("stopped")]
    last = jobs.lines(run.folder / "trace.jsonl")[-1]
    assert newest == last["samples"] + last["batch_samples"] >= stopped


def test_more_failures_than_allowed_end_the_run_with_their_cause(haunted: HauntedRun) -> None:
    [line] = [line for line in haunted.said["failures"].splitlines() if line.startswith("fault: ")]
    assert "imed out" in line
    assert haunted.said["MLflow"] == "FAILED"


def test_what_failed_workers_said_is_an_event_that_names_those_that_said_nothing(
    haunted: HauntedRun,
) -> None:
    kinds = {marker.name for marker in haunted.markers.iterdir()}
    assert kinds == {*("die", "die while rank 0 saves", "hang", "hang again", "die in annealing")}
    failed = haunted.events("workers_failed")
    # The one that hangs is named by the other, whose collective has a time limit.
    [timed_out] = [each for each in failed if "imed out" in each["because"]]
    assert timed_out["silent"] == [1]
    assert "rank 0: " in timed_out["because"]


def test_what_a_group_saved_in_which_a_worker_died_is_complete_or_not_there(
    haunted: HauntedRun,
) -> None:
    checkpoints = list((haunted.folder / "checkpoints").iterdir())
    assert all((path / "manifest.json").exists() for path in checkpoints)
    # Later groups write to folders of their own.
    assert max(int(path.name.split("-")[1]) for path in checkpoints) >= 8


def check_what_died(said: str, name: str) -> None:
    """Checks that a driver names the process of its session that died."""
    [line] = [line for line in said.splitlines() if line.startswith("fault: ")]
    assert f"{name}.out" in line
    assert "give the same command again" in line


def test_the_death_of_the_raylet_is_a_fault_that_says_what_died(haunted: HauntedRun) -> None:
    check_what_died(haunted.said["raylet"], "raylet")


def test_the_death_of_the_gcs_is_a_fault_that_says_what_died() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=jobs.ROOT,
        env=jobs.worker_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    jobs.STARTED.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    check_what_died(kill_session(process, "gcs_server"), "gcs_server")


def test_ctrl_c_saves_a_checkpoint_and_leaves_no_process_behind(haunted: HauntedRun) -> None:
    """The second one ends the run at once, though a worker hangs and nothing can be saved."""
    said = haunted.said["one Ctrl-C"]
    assert "interrupted: saving a checkpoint" in said
    assert "the same command goes on" in said
    assert "the same command goes on" in haunted.said["two Ctrl-C"]


def test_whichever_process_is_killed_each_sample_is_trained_once(haunted: HauntedRun) -> None:
    audit = json.loads((haunted.folder / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"], audit["trained"]) == (0, 0, audit["planned"])


def test_whichever_process_is_killed_the_run_continues_bit_for_bit(
    whole: Path, haunted: HauntedRun
) -> None:
    assert history(haunted.folder) == history(whole)
    # A checkpoint that Ctrl-C saved has a perplexity of its own.
    perplexities = dict(read_run_records(str(haunted.folder)).perplexities)
    assert perplexities | dict(read_run_records(str(whole)).perplexities) == perplexities
    without_fault, with_faults = (
        checkpoint.load_training_state(str(max((folder / "checkpoints").iterdir()))).weights
        for folder in (whole, haunted.folder)
    )
    assert all(bool((without_fault[name] == tensor).all()) for name, tensor in with_faults.items())


def test_each_driver_tells_mlflow_of_its_own_steps_only(haunted: HauntedRun) -> None:
    attempts = (haunted.folder / "attempts").iterdir()
    begins = [json.loads(path.read_text())["samples"] for path in attempts]
    with sqlite3.connect(haunted.tracking) as database:
        query = "SELECT COUNT(*) FROM metrics WHERE key = 'loss' AND step = 0"
        [(recorded,)] = database.execute(query).fetchall()
    assert 1 <= recorded <= begins.count(0) < len(begins)


def test_a_corrupt_checkpoint_is_reported_and_the_one_before_it_is_used(
    haunted: HauntedRun,
) -> None:
    assert any(
        "optimizer.safetensors: sha256" in event["because"]
        for event in haunted.events("checkpoint_ignored")
    )

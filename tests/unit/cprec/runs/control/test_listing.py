"""The list of runs: how each stands, only what changed is read, and what is no run is left out."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from cprec.runs.control import listing
from cprec.runs.control.lease import current_owner
from cprec.runs.control.listing import RunList
from cprec.runs.control.overview import RunOverview, State
from tests.records import trace_row

OTHER_HOST = {"host": "elsewhere", "pid": 1, "token": "t"}
STATUS = {
    "run": "r",
    "lease": 1,
    "state": "training",
    "phase": "stable",
    "samples": 640,
    "W": 100,
    "S": 900,
    "A": 1000,
    "corpus_version": 2,
}


def write_run(
    storage: Path,
    name: str,
    age_s: float = 0.0,
    ended: bool = False,
    owner: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
) -> Path:
    """Writes the files of a run whose last sign of life is some seconds old."""
    folder = storage / name
    owner = owner or current_owner().to_json()
    seen = time.time() - age_s
    lease = {"number": 1, "owner": owner, "time": seen, "run": name, "corpus": "/c", "ended": ended}
    (folder / "leases").mkdir(parents=True)
    (folder / "leases" / "000001.json").write_text(json.dumps(lease))
    if status is not None:
        content = {**STATUS, **status, "owner": owner, "time": seen}
        (folder / "status.json").write_text(json.dumps(content))
    return folder


def look(storage: Path) -> dict[str, RunOverview]:
    return RunList(str(storage)).look()


def states(storage: Path) -> dict[str, str]:
    return {name: run.state for name, run in look(storage).items()}


def test_states_follow_from_lease_and_status(tmp_path: Path) -> None:
    write_run(tmp_path, "a-trains", status={})
    write_run(tmp_path, "b-waits", status={"state": "waiting"})
    write_run(tmp_path, "c-starts")
    write_run(tmp_path, "d-ended", ended=True, status={"state": "ended", "phase": "done"})
    write_run(tmp_path, "e-stopped", ended=True, status={"state": "ended"})
    write_run(tmp_path, "f-silent", age_s=100, owner=OTHER_HOST, status={})
    write_run(tmp_path, "g-refused", ended=True)  # a start with a wrong base, for instance
    assert states(tmp_path) == {
        "a-trains": "training",
        "b-waits": "waiting",
        "c-starts": "starting",
        "d-ended": "done",
        "e-stopped": "stopped",
        "f-silent": "unknown",
    }


def test_a_run_has_its_samples_its_newest_loss_and_its_newest_checkpoint(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path, "r", status={})
    row = {
        "step": 0,
        "samples": 0,
        "batch_samples": 32,
        "phase": "warmup",
        "lr": 0.1,
        "loss": 2.5,
        "supervised_tokens": 1,
        "tokens": 1,
        "step_s": 1.0,
        "data_wait_s": 0.0,
        "sources": {"domain/Garden@0": 32},
        "ids_digest": "0" * 16,
    }
    rows = [json.dumps({**row, "step": step, "loss": 3.0 - step / 1000}) for step in range(900)]
    # The last line is being written.
    (folder / "trace.jsonl").write_text("\n".join(rows) + '\n{"step": 900, "lo')
    events = [
        {"event": "checkpoint_saved", "samples": at, "checkpoint": f"{folder}/checkpoints/{at}"}
        for at in (320, 640)
    ]
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    run = look(tmp_path)["r"]
    assert (run.state, run.phase, run.samples) == ("training", "stable", 640)
    assert (run.annealing_end, run.loss) == (1000, 3.0 - 899 / 1000)
    assert (run.checkpoint, run.checkpoint_samples) == (f"{folder}/checkpoints/640", 640)
    assert (run.corpus, run.corpus_version) == ("/c", 2)


def test_other_folders_are_no_runs_and_a_damaged_run_hides_no_other(tmp_path: Path) -> None:
    for name in ("bases", "mlflow", "evaluated-only/evaluation"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mlflow.db").write_text("")
    write_run(tmp_path, "whole", status={})
    (write_run(tmp_path, "damaged") / "status.json").write_text("{")
    assert states(tmp_path) == {"damaged": "unknown", "whole": "training"}
    assert "damaged, it holds no Status" in look(tmp_path)["damaged"].waits_for


def test_a_storage_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert look(tmp_path / "nowhere") == {}


def test_a_run_that_comes_changes_or_goes_is_seen(tmp_path: Path) -> None:
    write_run(tmp_path, "done", ended=True, status={"state": "ended", "phase": "done"})
    runs = RunList(str(tmp_path))
    assert set(runs.look()) == {"done"}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "events.jsonl").write_text('{"event": "failed", "samples": 3}\n')
    assert set(runs.look()) == {"done", "new"}
    (tmp_path / "new" / "events.jsonl").unlink()
    runs._next_full_look = 0.0
    assert set(runs.look()) == {"done"}


def test_resting_runs_are_not_read_at_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "done", ended=True, status={"state": "ended", "phase": "done"})
    runs = RunList(str(tmp_path))
    runs.look()
    runs._next_full_look = float("inf")
    monkeypatch.setattr(listing, "list_etags", lambda uri: pytest.fail("it was looked at"))
    assert runs.look()["done"].state is State.DONE


RUNS, RUNS_LIMIT_S = 1000, 2.0


def test_a_thousand_runs_are_listed_in_under_two_seconds(tmp_path: Path) -> None:
    ended = {"state": "ended", "phase": "done"}
    first = write_run(tmp_path, "run-0", ended=True, status=ended)
    row = json.dumps(trace_row().to_json())
    (first / "trace.jsonl").write_text(f"{row}\n" * 75)
    saved = json.dumps({"event": "checkpoint_saved", "samples": 640, "checkpoint": "/c/1"})
    (first / "events.jsonl").write_text(f"{saved}\n" * 20)
    for number in range(1, RUNS):
        shutil.copytree(first, tmp_path / f"run-{number}", copy_function=os.link)
    runs = RunList(str(tmp_path))
    began = time.process_time()
    assert len(runs.look()) == RUNS
    first_s = time.process_time() - began
    runs._next_full_look = 0.0
    began = time.process_time()
    runs.look()
    print(f"{RUNS} runs: {first_s:.2f} s, again {time.process_time() - began:.2f} s of CPU time")
    assert first_s < RUNS_LIMIT_S


def test_a_folder_that_cannot_be_read_hides_no_run(tmp_path: Path) -> None:
    write_run(tmp_path, "good", ended=True, status={"state": "ended", "phase": "done"})
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost+found").symlink_to("lost+found")
    runs = look(tmp_path)
    assert {name: run.state for name, run in runs.items()} == {"good": "done", "loop": "unknown"}
    assert "symbolic links" in runs["loop"].waits_for

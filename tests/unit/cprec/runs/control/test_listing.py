"""The list of runs: how each stands by one look, and what is no run or cannot be read."""

import json
import time
from pathlib import Path
from typing import Any

from cprec.runs.control.lease import current_owner
from cprec.runs.control.listing import RunOverview, list_runs

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


def states(storage: Path) -> dict[str, str]:
    return {run.run: run.state for run in list_runs(str(storage))}


def test_states_follow_from_lease_and_status(tmp_path: Path) -> None:
    write_run(tmp_path, "a-trains", status={})
    write_run(tmp_path, "b-waits", status={"state": "waiting"})
    write_run(tmp_path, "c-starts")
    write_run(tmp_path, "d-ended", ended=True, status={"state": "ended", "phase": "done"})
    write_run(tmp_path, "e-stopped", ended=True, status={"state": "ended"})
    write_run(tmp_path, "f-silent", age_s=100, owner=OTHER_HOST, status={})
    assert states(tmp_path) == {
        "a-trains": "training",
        "b-waits": "waiting",
        "c-starts": "starting",
        "d-ended": "ended",
        "e-stopped": "stopped",
        "f-silent": "unknown",
    }


def test_a_run_has_its_samples_its_newest_loss_and_its_newest_complete_checkpoint(
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
    for name, whole in (("000000000320-0", True), ("000000000640-0", True), ("000000000960-0", 0)):
        (folder / "checkpoints" / name).mkdir(parents=True)
        if whole:
            (folder / "checkpoints" / name / "manifest.json").write_text("{}")
    (run,) = list_runs(str(tmp_path))
    assert run == RunOverview(
        "r",
        "training",
        "stable",
        640,
        1000,
        3.0 - 899 / 1000,
        f"{folder}/checkpoints/000000000640-0",
        "/c",
        2,
        run.seen,
    )


def test_other_folders_are_no_runs_and_a_damaged_run_hides_no_other(tmp_path: Path) -> None:
    for name in ("bases", "mlflow", "evaluated-only/evaluation"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mlflow.db").write_text("")
    write_run(tmp_path, "whole", status={})
    (write_run(tmp_path, "damaged") / "status.json").write_text("{")
    listed = states(tmp_path)
    assert set(listed) == {"damaged", "whole"}
    assert listed["whole"] == "training"
    assert listed["damaged"].startswith("unreadable: ")


def test_a_storage_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert list_runs(str(tmp_path / "nowhere")) == []

"""One of two workers fails: it raises, dies while the other saves, or hangs before a collective."""

import json
import sqlite3
from pathlib import Path

import pytest

from tests.faults.injection import environment, fault
from tests.integration import jobs


def start_of(run: str, *options: str) -> list[str]:
    return ["--run", run, "--workers", "2", "--train.global_batch", "64", *options]


def test_a_run_outlives_a_rank_that_raises_dies_in_a_save_and_hangs(
    place: Path, tmp_path: Path
) -> None:
    """Each fault happens once, in this order; the collective's time limit ends the last one."""
    folder = place / "runs" / "ranks"
    kinds = ["raise", "die while rank 0 saves", "hang"]
    faults = [fault(kind, 2, tmp_path / kind) for kind in kinds]
    faults[2]["step"] = 4
    options = start_of("ranks", "--train.collective_timeout_s", "20")
    process = jobs.start("cpt", place / "recipe.yaml", *options, environment=environment(*faults))
    # Four groups of workers are started one after the other.
    out, err = process.communicate(timeout=3 * jobs.LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    assert all((tmp_path / kind).exists() for kind in kinds)
    assert "0 missing, 0 repeated" in out
    audit = json.loads((folder / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"], audit["trained"]) == (0, 0, audit["planned"])
    attempts = {int(path.name.split("-")[1]) for path in (folder / "checkpoints").iterdir()}
    events = jobs.lines(folder / "events.jsonl")
    failed = [event for event in events if event["event"] == "workers_failed"]
    said = [event["because"] for event in failed]
    assert any("rank 1: RuntimeError: injected into rank 1" in because for because in said)
    # The one that hangs is named by the other, whose collective has a time limit.
    assert failed[-1]["silent"] == [1]
    assert "rank 0: " in said[-1]
    # What the group saved in which rank 1 died is complete, or is not there; later groups write to
    # folders of their own.
    assert max(attempts) >= 2
    assert all((path / "manifest.json").exists() for path in (folder / "checkpoints").iterdir())


def test_more_failures_than_allowed_end_the_run_with_their_cause(place: Path) -> None:
    options = start_of("failing", "--train.max_failures", "1")
    always = environment(fault("raise", 1, None))
    process = jobs.start("cpt", place / "recipe.yaml", *options, environment=always)
    _, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 2, err[-3000:]
    [line] = [line for line in err.splitlines() if line.startswith("fault: ")]
    assert "injected into rank 1" in line
    with sqlite3.connect(place / "runs" / "mlflow.db") as database:
        found = database.execute("SELECT status FROM runs WHERE name = 'failing'").fetchall()
    assert found == [("FAILED",)]


@pytest.mark.parametrize("seconds", [9, 0])
def test_a_collective_has_ten_seconds_at_least(place: Path, seconds: int) -> None:
    ended = jobs.run(
        "cpt",
        place / "recipe.yaml",
        "--train.collective_timeout_s",
        str(seconds),
        "--dry-run",
        code=1,
    )
    assert "train.collective_timeout_s" in ended.stderr

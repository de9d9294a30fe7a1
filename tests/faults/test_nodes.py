"""Nodes of a cluster come and go: one after a notice, the next one without a word."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.injection import environment, fault
from tests.faults.local_cluster import LocalCluster, local_cluster
from tests.faults.test_kills import events_of, history
from tests.integration import jobs

NOTICE_S = 20
"""Seconds between the notice and the end of a node, on a machine that does other tests too."""

Gates = tuple[Path, Path, Path]
"""Files for which the workers wait at steps 4, 9 and 12."""


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    """The gates, closed."""
    folder = tmp_path_factory.mktemp("gates")
    return folder / "first", folder / "second", folder / "third"


@pytest.fixture(scope="module")
def cluster(gates: Gates) -> Iterator[LocalCluster]:
    """A cluster with a head and a node. A step takes a second; workers wait at gates."""
    waits = [fault("wait", step, gate) for step, gate in zip((4, 9, 12), gates, strict=True)]
    # The first worker does all of it too, because it is alone for a while.
    slow = [fault("slow", 0, None)]
    faults = [{**each, "rank": rank} for each in slow + waits for rank in (0, 1)]
    # Then the first one waits for the notice, and with it the other in the step's collective.
    faults.append({**fault("await notice", 4, gates[0].with_name("noticed")), "rank": 0})
    with local_cluster(environment(*faults)) as cluster:
        cluster.add_node(6)
        yield cluster


def test_a_run_outlives_nodes_that_are_taken_away_and_takes_what_there_is(
    cluster: LocalCluster, gates: Gates, place: Path, whole: Path, tmp_path: Path
) -> None:
    """Restarts after a notice, and for another number of workers, are no failures.

    One failure is allowed, and used up.
    """
    folder = place / "runs" / "nodes"
    options = ["--train.max_failures", "1", "--checkpoint.every_samples", "320"]
    options += ["--train.min_workers", "1", "--train.resize_interval_s", "3"]
    options += ["--mlflow.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    process = jobs.start(
        "cpt",
        place / "recipe.yaml",
        "--run",
        "nodes",
        *options,
        environment=cluster.driver_environment,
    )

    def trained() -> int:
        return len(jobs.lines(folder / "trace.jsonl"))

    rows_before: list[dict[str, Any]] = []

    def wait_for_resumption(workers: int, after: float = 0.0) -> dict[str, Any]:
        def resumptions() -> list[dict[str, Any]]:
            rows = jobs.lines(folder / "trace.jsonl")
            resumed = events_of(folder, "resumed")
            found = [each for each in resumed if each["workers"] == workers]
            if not (found := [each for each in found if each["time"] > after]):
                rows_before[:] = rows
            return found

        jobs.wait_for(process, lambda: bool(resumptions()))
        return resumptions()[0]

    jobs.wait_for(process, lambda: bool(events_of(folder, "phase_changed")))
    first, second = cluster.nodes[1], cluster.add_node(6)
    jobs.wait_for(process, lambda: trained() == 4)
    cluster.announce_end(first, NOTICE_S)
    gates[0].touch()
    resumed = wait_for_resumption(2)
    repeated = sum(row["samples"] > resumed["samples"] for row in rows_before)
    cluster.remove(first)
    [notice] = events_of(folder, "preemption_noticed")
    assert notice["ranks"] == [0, 1]
    assert 0 < notice["deadline"] - notice["time"] <= NOTICE_S
    # What was saved in time is what the run goes on from.
    *_, saved = events_of(folder, "checkpoint_saved")
    assert notice["time"] <= saved["time"] < notice["deadline"]
    assert resumed["from"] == saved["checkpoint"]
    assert resumed["samples"] % 320
    assert repeated <= 3  # it was told in step 4, saved after step 5, and waited at step 9
    assert [sidecar.wait(timeout=NOTICE_S) for sidecar in cluster.sidecars] == [0]

    cluster.add_node(3)  # two CPUs are Ray Data's
    gates[1].touch()
    jobs.wait_for(process, lambda: trained() > 9)
    cluster.remove(second)
    shrunk = wait_for_resumption(1)

    cluster.add_node(6)
    gates[2].touch()
    grown = wait_for_resumption(2, after=shrunk["time"])
    # It was saved for the new group, which loses only what was trained while it was started.
    checkpoints = [
        each["checkpoint"]
        for each in events_of(folder, "checkpoint_saved")
        if each["time"] < grown["time"]
    ]
    assert grown["from"] == checkpoints[-1]
    assert grown["samples"] > shrunk["samples"]

    out, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    assert "0 missing, 0 repeated" in out
    # Two workers at first, if the group starts while the node's death is not known yet.
    sizes = [each["workers"] for each in events_of(folder, "resumed")]
    assert sizes in ([2, 1, 2], [2, 2, 1, 2])
    audit = json.loads((folder / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"], audit["trained"]) == (0, 0, audit["planned"])
    # With another number of workers, sums are rounded otherwise.
    rows, whole_rows = history(folder), history(whole)
    exact = sum(row["samples"] < shrunk["samples"] for row in whole_rows)
    assert rows[:exact] == whole_rows[:exact]
    losses, whole_losses = ([row.pop("loss") for row in each] for each in (rows, whole_rows))
    assert rows == whole_rows
    assert losses == pytest.approx(whole_losses, rel=0.01)

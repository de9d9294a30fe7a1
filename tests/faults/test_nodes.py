"""Nodes of a cluster come and go: one after a notice, the next one without a word."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.processes import spot
from tests.faults.injection import environment, fault
from tests.faults.test_kills import events_of, history
from tests.integration import jobs
from tests.integration.test_submit import free_ports

RAY = str(Path(sys.executable).parent / "ray")
NOTICE_S = 8
"""Seconds between the notice and the end of a node."""


@dataclass
class LocalCluster:
    """A Ray cluster whose nodes are processes of this machine. The head has no CPUs.

    Attributes:
        folder: Where Ray puts its files; short, because sockets are below it.
        port: Port of the head.
        environment: Environment of nodes and drivers.
        gates: Files for which the workers wait at steps 3, 9 and 12.
        nodes: The processes that were started, the head first.
        sidecars: The sidecars that drained a node.
    """

    folder: Path
    port: int
    environment: dict[str, str]
    gates: tuple[Path, Path, Path]
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    sidecars: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address that drivers take."""
        return f"127.0.0.1:{self.port}"

    def add_node(self, cpus: int) -> "subprocess.Popen[bytes]":
        """Starts a node and waits until it is there; the first one becomes the head."""
        agent, client = free_ports(2)
        place = [f"--address={self.address}"]
        if not self.nodes:
            place = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}"]
            place += ["--include-dashboard=false", f"--ray-client-server-port={client}"]
        command = [RAY, "start", *place, "--block", "--disable-usage-stats"]
        command += [f"--dashboard-agent-listen-port={agent}"]
        ports = ("min-worker", "max-worker", "node-manager", "object-manager")
        command += [f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1"]
        command += ["--object-store-memory=150000000", *(f"--{name}-port=0" for name in ports)]
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            node = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes.append(node)
        end = time.monotonic() + jobs.LIMIT_S
        while "Ray runtime started" not in Path(log.name).read_text():
            assert node.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        return node

    def announce_end(self, node: "subprocess.Popen[bytes]") -> None:
        """Announces that a node is taken away, to a sidecar that drains it until then."""
        [raylet] = [each for each, name in jobs.names_below(node.pid).items() if name == "raylet"]
        [node_id] = [
            argument.partition("=")[2]
            for argument in raylet.cmdline()
            if argument.startswith("--node_id=")
        ]
        command = [sys.executable, spot.__file__, "now", f"--address={self.address}"]
        command += [f"--node-id={node_id}", f"--seconds={NOTICE_S}"]
        self.sidecars.append(subprocess.Popen(command, env={**os.environ, **self.environment}))

    @staticmethod
    def remove(node: "subprocess.Popen[bytes]") -> None:
        """Kills all processes of a node."""
        processes = [psutil.Process(node.pid), *jobs.below(node.pid)]
        for process in processes:
            process.suspend()
        for process in processes:
            process.kill()
        node.wait()
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert not alive


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster with a head and a node. A step takes a second; workers wait at gates."""
    folder = Path(tempfile.mkdtemp(prefix="cprec-"))
    [port] = free_ports(1)
    gates = (folder / "first-gate", folder / "second-gate", folder / "third-gate")
    waits = [fault("wait", step, gate) for step, gate in zip((3, 9, 12), gates, strict=True)]
    # The first worker does all of it too, because it is alone for a while.
    slow = [fault("slow", 0, None)]
    faults = [{**each, "rank": rank} for each in slow + waits for rank in (0, 1)]
    variables = environment(*faults) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        "RAY_health_check_period_ms": "1000",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    cluster = LocalCluster(folder, port, variables, gates)
    try:
        cluster.add_node(0)
        cluster.add_node(6)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            if node.poll() is None:
                cluster.remove(node)
        for sidecar in cluster.sidecars:
            sidecar.kill()
            sidecar.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_outlives_nodes_that_are_taken_away_and_takes_what_there_is(
    cluster: LocalCluster, place: Path, whole: Path
) -> None:
    """Restarts after a notice, and for another number of workers, are no failures.

    One failure is allowed, and used up.
    """
    folder = place / "runs" / "nodes"
    options = ["--train.max_failures", "1", "--checkpoint.every_samples", "320"]
    options += ["--train.min_workers", "1", "--train.resize_interval_s", "3"]
    process = jobs.start(
        "cpt",
        place / "recipe.yaml",
        "--run",
        "nodes",
        *options,
        environment=cluster.environment | {"RAY_ADDRESS": cluster.address},
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
    cluster.announce_end(first)
    cluster.gates[0].touch()
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
    assert repeated <= 3  # a step, a save and a second, in steps of a second
    assert [sidecar.wait(timeout=NOTICE_S) for sidecar in cluster.sidecars] == [0]

    cluster.add_node(3)  # two CPUs are Ray Data's
    cluster.gates[1].touch()
    jobs.wait_for(process, lambda: trained() > 9)
    cluster.remove(second)
    shrunk = wait_for_resumption(1)

    cluster.add_node(6)
    cluster.gates[2].touch()
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

"""A Ray cluster whose nodes are processes of this machine, and come and go."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.processes import spot
from tests.integration import jobs
from tests.integration.test_submit import free_ports

RAY = str(Path(sys.executable).parent / "ray")
WORKER_CPUS, NODE_CPUS = 3, 5
"""A node of NODE_CPUS has room for one worker of WORKER_CPUS, and for Ray Data."""
NOTICE_S = 8
"""Seconds between the notice and the end of a node."""


@dataclass
class LocalCluster:
    """A cluster. Its head has no CPUs.

    Attributes:
        folder: Where Ray puts its files; short, because sockets are below it.
        port: Port of the head.
        environment: Environment of its nodes.
        nodes: The processes that were started, the head first.
        sidecars: The sidecars that drained a node.
    """

    folder: Path
    port: int
    environment: dict[str, str]
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    sidecars: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address of its head."""
        return f"127.0.0.1:{self.port}"

    @property
    def driver_environment(self) -> dict[str, str]:
        """Environment of drivers that work on it."""
        return {**self.environment, "RAY_ADDRESS": self.address}

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

    def announce_end(self, node: "subprocess.Popen[bytes]", notice_s: int = NOTICE_S) -> None:
        """Announces that a node is taken away, to a sidecar that drains it until then."""
        [raylet] = [each for each, name in jobs.names_below(node.pid).items() if name == "raylet"]
        [node_id] = [
            argument.partition("=")[2]
            for argument in raylet.cmdline()
            if argument.startswith("--node_id=")
        ]
        command = [sys.executable, spot.__file__, "now", f"--address={self.address}"]
        command += [f"--node-id={node_id}", f"--seconds={notice_s}"]
        self.sidecars.append(subprocess.Popen(command, env={**os.environ, **self.environment}))

    @staticmethod
    def remove(node: "subprocess.Popen[bytes]") -> None:
        """Kills all processes of a node."""
        processes = [psutil.Process(node.pid), *jobs.below(node.pid)]
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    act(process)
        node.wait()
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert not alive


@contextmanager
def local_cluster(environment: Mapping[str, str]) -> Iterator[LocalCluster]:
    """Yields a cluster that has a head; at the end of the `with` block it ends.

    Args:
        environment: Environment of its nodes and of the drivers, beside what makes a cluster hear
            of its nodes soon.
    """
    folder = Path(tempfile.mkdtemp(prefix="cprec-"))
    [port] = free_ports(1)
    quick = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        "RAY_health_check_period_ms": "1000",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    cluster = LocalCluster(folder, port, {**environment, **quick})
    try:
        cluster.add_node(0)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            if node.poll() is None:
                cluster.remove(node)
        for sidecar in cluster.sidecars:
            sidecar.kill()
            sidecar.wait()
        shutil.rmtree(folder, ignore_errors=True)

"""The soak on nodes: processes and whole nodes of a cluster die at random, among other things.

    python tests/faults/soak_nodes.py --folder DIR --kills 100 --seed 1

A head and three nodes are processes of this machine, with a token. What happens beside that of
`soak.py`: a node is killed, or drained by the spot sidecar and then killed; the head dies with
everything; for a while no node takes the place of a lost one, so that the run goes on with fewer
workers. Before the last kills the run is told to anneal.

It is no part of `make test`.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.faults.injection import environment, fault  # noqa: E402
from tests.faults.local_cluster import (  # noqa: E402
    NODE_CPUS,
    NOTICE_S,
    WORKER_CPUS,
    LocalCluster,
    local_cluster,
)
from tests.faults.soak import Fault, Soak, is_well, parse_options, run_soak  # noqa: E402
from tests.integration import jobs  # noqa: E402

WORKERS = 2
NODES = 3
FEWER_S = 60.0
"""Seconds for which a lost node may have no successor."""
LAST_KILLS = 10
"""Kills that are left when the run is told to anneal."""


class NodesSoak(Soak):
    """A soak of a run whose workers are on nodes that come and go."""

    TRAIN: ClassVar[dict[str, Any]] = {
        "min_workers": 1,
        "cpus_per_worker": WORKER_CPUS,
        "collective_timeout_s": 20,
        "resize_interval_s": 10,
    }

    def __init__(self, folder: Path, seed: int, users: int) -> None:
        """Builds the corpus and the recipe unless they are there, and starts the cluster."""
        super().__init__(folder, seed, users)
        self._ending = ExitStack()
        self._successors_from = 0.0
        self._cluster = self._start_cluster()

    def _start_cluster(self) -> LocalCluster:
        slow = [{**fault("slow", 0, None), "rank": rank} for rank in range(WORKERS)]
        cluster = self._ending.enter_context(local_cluster(environment(*slow)))
        for _ in range(NODES):
            cluster.add_node(NODE_CPUS)
        return cluster

    def driver_environment(self) -> dict[str, str]:
        """Returns the environment of drivers on the cluster."""
        return self._cluster.driver_environment

    def roots(self) -> list[int]:
        """Returns the driver and all nodes."""
        return [*super().roots(), *(n.pid for n in self._cluster.nodes if n.poll() is None)]

    def _living(self) -> "list[subprocess.Popen[bytes]]":
        """Returns the nodes that live, without the head."""
        return [node for node in self._cluster.nodes[1:] if node.poll() is None]

    def _has_head(self) -> bool:
        """Returns whether the head lives, with what it cannot do without."""
        head = self._cluster.nodes[0]
        if head.poll() is not None:
            return False
        return {"raylet", "gcs_server"} <= set(jobs.names_below(head.pid).values())

    def keep_driver(self) -> bool:
        """Gives lost nodes successors, and a lost head a new cluster; then as every soak does."""
        if not self._has_head():
            self._ending.close()
            self._cluster = self._start_cluster()
        elif time.monotonic() > self._successors_from:
            for _ in range(NODES - len(self._living())):
                with suppress(AssertionError):  # the head died meanwhile
                    self._cluster.add_node(NODE_CPUS)
        return super().keep_driver()

    # -- faults: each returns whether it could happen

    def kill_node(self) -> bool:
        """Kills a node with all its processes."""
        living = self._living()
        return bool(living) and self._lose(self.random.choice(living))

    def kill_node_for_long(self) -> bool:
        """Kills a node that has no successor for a while."""
        self._successors_from = time.monotonic() + FEWER_S
        return self.kill_node()

    def kill_head(self) -> bool:
        """Kills the head with all its processes, the GCS among them."""
        return self._lose(self._cluster.nodes[0])

    def _lose(self, node: "subprocess.Popen[bytes]") -> bool:
        self._cluster.remove(node)
        self.note_kill()
        return True

    def drain(self) -> bool:
        """Drains a node, which is killed when its notice is over."""
        if not (living := self._living()):
            return False
        node = self.random.choice(living)
        with suppress(ValueError):  # its raylet has just died
            self._cluster.announce_end(node)
        self.wait(NOTICE_S)
        return node.poll() is not None or self._lose(node)

    def faults(self) -> dict[str, Fault]:
        """Returns what can happen here, without the disk, which is not a small one."""
        faults = super().faults()
        del faults["full disk"], faults["kill: everything"]
        return {
            **faults,
            "kill: node": (6, self.kill_node),
            "kill: node, without a successor": (3, self.kill_node_for_long),
            "kill: head": (1, self.kill_head),
            "kill: node, after a notice": (3, self.drain),
        }

    # -- the end

    def disturb(self, minutes: float, kills: float = math.inf) -> None:
        """Disturbs the run, and tells it to anneal before the last kills."""
        begin = time.monotonic()
        super().disturb(minutes, kills - LAST_KILLS)
        while not self.control("anneal"):
            if self.wait(5):
                return
        super().disturb(minutes - (time.monotonic() - begin) / 60, kills)

    def stop(self) -> None:
        """Ends what is still running."""
        super().stop()
        self._ending.close()


def main() -> int:
    """Runs a soak and prints what it showed; returns 0 if the run ended as an undisturbed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many processes or nodes die")
    parser.add_argument("--minutes", type=float, default=120.0, help="how long, at most")
    parser.add_argument("--users", type=int, default=600, help="simulated shoppers")
    options = parse_options(parser)
    soak = NodesSoak(options.folder, options.seed, options.users)
    result = {"seed": options.seed, **run_soak(soak, options.minutes, options.kills)}
    print(json.dumps(result, indent=1))
    return 0 if is_well(result) else 1


if __name__ == "__main__":
    sys.exit(main())

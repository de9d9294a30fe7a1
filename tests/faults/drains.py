"""Measures what a drained node costs a run, and what that makes of a day with a drain an hour.

    python tests/faults/drains.py --folder DIR [--drains 6] [--between 45]

A head and two nodes are processes of this machine, with a worker of the run on each and steps of a
second. Again and again a third node joins, and one of the two is drained by the spot sidecar and
then killed. Its worker moves to the third one.

A drain costs the time in which the run gets nowhere: the end of the group, the start of the next
one, and the steps that are trained again. Goodput is time in steps that count / time in all. The
day draws 24 of the measured costs; beside it stand days of drains with a start as long as a large
model may take, which are assumed and not measured.
"""

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from tests.faults.test_kills import events_of  # noqa: E402
from tests.integration import jobs  # noqa: E402

BATCH = 32
STEPS_IN_A_DRAIN = 40
"""Steps that the run may come further while a node joins and another one is drained."""

HOUR_S = 3600.0
DRAINS_OF_A_DAY = 24
DAYS = 1000
"""Days that are drawn."""
ASSUMED_STARTS_S = (60.0, 180.0, 300.0)
LIMIT_S = 600.0
"""Seconds that anything may take that is waited for."""


@dataclass(frozen=True)
class Drain:
    """What one drain cost.

    Attributes:
        standstill_s: From the last step that counted before it to the next one that did, less the
            duration of that step.
        repeated: Steps that were trained again.
    """

    standstill_s: float
    repeated: int


class Frontier:
    """How far a run has come, and when it came so far."""

    def __init__(self, folder: Path) -> None:
        self._trace = folder / "trace.jsonl"
        self._seen: tuple[int, int] | None = None
        self.rows: list[dict[str, Any]] = []
        self.arrived: dict[int, float] = {}
        """Unix seconds at which the run first came so far, by samples after a step."""

    def look(self) -> int:
        """Reads the trace if it changed; returns the number of steps that the run has come."""
        if self._trace.exists():
            stat = self._trace.stat()
            if self._seen != (stat.st_size, stat.st_mtime_ns):
                self._seen = (stat.st_size, stat.st_mtime_ns)
                self.rows = jobs.lines(self._trace)
                for row in self.rows:
                    self.arrived.setdefault(row["samples"] + row["batch_samples"], time.time())
        return len(self.arrived)


class DrainedRun:
    """A run on a cluster whose nodes are drained."""

    def __init__(self, folder: Path, cluster: LocalCluster, steps: int) -> None:
        """Builds a corpus below an empty folder and starts a run of so many steps."""
        self._cluster = cluster
        self._nodes = [cluster.add_node(NODE_CPUS) for _ in range(2)]
        self.folder = folder / "runs" / "drained"
        self.recipe = jobs.recipe(
            folder,
            run="drained",
            simulate={"users": 1200, "items_per_domain": 60},
            train={
                "global_batch": BATCH,
                "zero_stage": 1,
                "cpus_per_worker": WORKER_CPUS,
                "max_samples": steps * BATCH // 2,  # as many mixed ones follow
            },
            checkpoint={"every_samples": 60 * BATCH},
        )
        jobs.run("build_corpus", self.recipe)
        self._driver = jobs.start("cpt", self.recipe, environment=cluster.driver_environment)
        self.frontier = Frontier(self.folder)

    def train(self, steps: int) -> None:
        """Lets the run come some steps further."""
        wanted, end = self.frontier.look() + steps, time.monotonic() + LIMIT_S
        while self.frontier.look() < wanted:
            if self._driver.poll() is not None:
                sys.exit(f"the driver ended with {self._driver.returncode}")
            if time.monotonic() > end:
                sys.exit(f"the run did not come {steps} steps further in {LIMIT_S:.0f} s")
            time.sleep(0.1)

    def drain(self) -> Drain:
        """Drains the older node, and waits until its worker is at work on another one."""
        self._nodes.append(self._cluster.add_node(NODE_CPUS))
        node = self._nodes.pop(0)
        resumptions = len(events_of(self.folder, "resumed"))
        self._cluster.announce_end(node)
        end = time.monotonic() + NOTICE_S
        while time.monotonic() < end:
            self.frontier.look()
            time.sleep(0.1)
        self._cluster.remove(node)
        end = time.monotonic() + LIMIT_S
        while len(events_of(self.folder, "resumed")) == resumptions:
            self.frontier.look()
            if self._driver.poll() is not None or time.monotonic() > end:
                sys.exit("the run did not go on after a drain")
            time.sleep(0.1)
        furthest = max(self.frontier.arrived)
        self.train(1)
        resumed = events_of(self.folder, "resumed")[-1]
        repeated = sum(resumed["samples"] < each <= furthest for each in self.frontier.arrived)
        [step] = [row for row in self.frontier.rows if row["samples"] == furthest]
        arrived = self.frontier.arrived
        standstill_s = arrived[furthest + step["batch_samples"]] - arrived[furthest]
        return Drain(standstill_s - step["step_s"], repeated)

    def finish(self) -> dict[str, Any]:
        """Waits for the end, and returns the audit."""
        _, err = self._driver.communicate(timeout=LIMIT_S)
        if self._driver.returncode:
            sys.exit(f"the driver ended with {self._driver.returncode}: {err[-2000:]}")
        audit: dict[str, Any] = json.loads((self.folder / "audit.json").read_text())
        return audit


def goodput(costs_s: list[float]) -> float:
    """Returns the goodput of hours with a drain each.

    Args:
        costs_s: What the drain of each hour costs.
    """
    return 1 - sum(costs_s) / (HOUR_S * len(costs_s))


def print_days(drains: list[Drain]) -> None:
    """Prints the goodput of days with a drain an hour."""
    draw = random.Random(0)
    costs_s = [drain.standstill_s for drain in drains]
    days = sorted(goodput(draw.choices(costs_s, k=DRAINS_OF_A_DAY)) for _ in range(DAYS))
    low, middle, high = (days[round(part * (DAYS - 1))] for part in (0.05, 0.5, 0.95))
    print(
        f"a day of {DRAINS_OF_A_DAY} drains, each cost drawn from these: goodput {middle:.2%}, "
        f"from {low:.2%} to {high:.2%} in nine of ten days"
    )
    for start_s in ASSUMED_STARTS_S:
        print(f"if each cost {start_s:.0f} s (assumed): {goodput([start_s]):.2%}")


def main() -> None:
    """Drains, and prints what it cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder")
    parser.add_argument("--drains", type=int, default=6)
    parser.add_argument("--between", type=int, default=45, help="steps between two drains")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty")
    slow = [{**fault("slow", 0, None), "rank": rank} for rank in (0, 1)]
    drains = []
    try:
        with local_cluster(environment(*slow)) as cluster:
            steps = options.between * (options.drains + 1) + STEPS_IN_A_DRAIN * options.drains
            run = DrainedRun(options.folder.absolute(), cluster, steps)
            run.train(options.between)
            for number in range(1, options.drains + 1):
                drains.append(drain := run.drain())
                print(
                    f"drain {number}: {drain.standstill_s:.1f} s at a standstill, "
                    f"{drain.repeated} steps trained again",
                    flush=True,
                )
                run.train(options.between)
            audit = run.finish()
    finally:
        jobs.end_all()
    print(
        f"audit: {audit['planned']:,} planned, {audit['missing']} missing, "
        f"{audit['repeated']} repeated"
    )
    costs_s = [drain.standstill_s for drain in drains]
    print(
        f"a drain costs {statistics.mean(costs_s):.1f} s on average, {max(costs_s):.1f} s at most"
    )
    print_days(drains)


if __name__ == "__main__":
    main()

"""Cuts the network between machines of a run, which must end as an undisturbed one.

    python tests/faults/network.py --folder DIR [--only NAME ...]

A head and two nodes are namespaces of this machine (`tests.faults.machines`), each with an address
of its own. They share an S3 server on the switch between them, and no file. The driver is on the
head, one worker is on each node, a step takes a second, and Ray's settings are its own.

A run is made undisturbed, and then once for each cut:

    nodes-30s      the two nodes do not reach each other for 30 seconds
    head-30s       the first node does not reach the head for 30 seconds
    node-30s       the first node reaches nobody for 30 seconds
    head-ever      the first node never reaches the head again; a new node joins
    node-ever      the first node never reaches anybody again; a new node joins
    nodes-ever     the two nodes never reach each other again; the run has to end, with code 2,
                   and the same command goes on when the wire is mended

It is no part of `make test`. Needs root.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import boto3  # noqa: E402

from tests.faults.injection import fault  # noqa: E402
from tests.faults.machines import (  # noqa: E402
    PRIVATE,
    SWITCH,
    Machine,
    address_of,
    enter_private_world,
    set_cut,
    start_machine,
    wait_until_line,
)
from tests.integration import jobs  # noqa: E402

S3_PORT = 9000
GCS_PORT = 6379
CUT_AT = 5
"""Steps after which the network is cut."""

LIMIT_S = 900.0
"""Seconds that a run may take."""

ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://{SWITCH}:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "RAY_ADDRESS": f"{address_of(1)}:{GCS_PORT}",
    "CPREC_TEST_FAULTS": json.dumps([fault("slow", 0, None)]),
}


@dataclass(frozen=True)
class Cut:
    """A cut of the network.

    Attributes:
        between: Who lose each other: `nodes`, `head` (and the first node), or `node` (the first
            one, and everybody).
        seconds: How long; None: for ever.
    """

    between: str
    seconds: float | None


CUTS = {
    f"{between}-{'ever' if seconds is None else f'{seconds:.0f}s'}": Cut(between, seconds)
    for between, seconds in (
        ("nodes", 30.0),
        ("head", 30.0),
        ("node", 30.0),
        ("head", None),
        ("node", None),
        ("nodes", None),
    )
}


class Fleet:
    """A cluster of machines, its storage, and the runs that are made on it."""

    def __init__(self, folder: Path) -> None:
        """Starts storage, head and two nodes, and builds a corpus."""
        self.folder = folder
        os.environ.update(ENVIRONMENT)
        log, listening = (folder / "s3.log").open("wb"), socket.create_server((SWITCH, S3_PORT))
        with log, listening:
            number = listening.fileno()
            command = [sys.executable, "-m", "tests.integration.s3_server", str(number)]
            self._storage = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, pass_fds=[number]
            )
        self._s3 = boto3.client("s3")
        self._until(lambda: self._s3.create_bucket(Bucket="bucket") is not None, 60)
        self.recipe = jobs.recipe(
            folder,
            storage="s3://bucket/runs",
            corpus="s3://bucket/corpus",
            data={
                "root": "s3://bucket/shoppers",
                "format": "simulated",
                "domains": ["Garden", "Office", "Sports"],
                "held_out": ["Games"],
            },
            mlflow={"uri": f"sqlite:///{PRIVATE}/mlflow.db"},
            train={
                "global_batch": 32,
                "zero_stage": 0,
                "max_samples": 300,
                "collective_timeout_s": 20,
                "max_failures": 2,
                "cpus_per_worker": 2,  # so that a node has room for one
            },
        )
        local = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with (folder / "build.log").open("wb") as log:
            subprocess.run(
                [sys.executable, "jobs/build_corpus.py", str(self.recipe)],
                cwd=ROOT, env=local, stdout=log, stderr=log, check=True,
            )  # fmt: skip
        self.machines: list[Machine] = []
        self.head = self.add_machine()
        self.nodes = [self.add_machine(), self.add_machine()]

    def add_machine(self) -> Machine:
        """Starts a machine with a Ray node, and waits until it is there; the first is the head."""
        number = len(self.machines) + 1
        is_head = number == 1
        place = f"--address={address_of(1)}:{GCS_PORT}"
        if is_head:
            place = f"--head --port={GCS_PORT} --include-dashboard=false"
        machine = start_machine(
            number,
            f"{Path(sys.executable).parent}/ray start {place} --block --disable-usage-stats"
            f" --temp-dir={PRIVATE} --node-ip-address={address_of(number)}"
            f" --num-cpus={0 if is_head else 3} --object-store-memory=150000000",
            {"PYTHONPATH": f"{PRIVATE}/injected"},
            self.folder / f"m{number}.log",
            has_repository=is_head,
        )
        self.machines.append(machine)
        wait_until_line(machine, "Ray runtime started", 180)
        return machine

    def replace(self, node: Machine) -> None:
        """Removes a node, and starts another one in its place."""
        node.remove()
        self.nodes[self.nodes.index(node)] = self.add_machine()

    def lines(self, run: str, name: str) -> list[dict[str, Any]]:
        """Returns what a run wrote into a file of JSON lines."""
        try:
            answer = self._s3.get_object(Bucket="bucket", Key=f"runs/{run}/{name}")
        except self._s3.exceptions.NoSuchKey:
            return []
        return [json.loads(line) for line in answer["Body"].read().splitlines()]

    def start(self, run: str) -> "subprocess.Popen[bytes]":
        """Starts the driver of a run on the head."""
        command = self.head.command(sys.executable, "jobs/cpt.py", str(self.recipe), "--run", run)
        with (self.folder / f"{run}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, "TMPDIR": f"{PRIVATE}/tmp"},
                stdout=log,
                stderr=log,
            )

    def try_cut(self, name: str, cut: Cut) -> dict[str, Any]:
        """Makes a run whose network is cut; returns how it took it."""
        driver = self.start(name)
        self._until(lambda: len(self.lines(name, "trace.jsonl")) > CUT_AT, LIMIT_S, driver)
        workers = [len(jobs.below(node.process.pid, "ray::RayTrainWorker")) for node in self.nodes]
        assert workers == [1, 1], f"workers of the nodes: {workers}"
        first = self.nodes[0]
        second = {"nodes": self.nodes[1], "head": self.head, "node": None}[cut.between]
        set_cut(first, second, is_cut=True)
        begin = time.time()
        codes: list[int] = []
        if cut.seconds is not None:
            time.sleep(cut.seconds)
            set_cut(first, second, is_cut=False)
        elif cut.between == "nodes":
            codes.append(driver.wait(LIMIT_S))
            set_cut(first, second, is_cut=False)
            driver = self.start(name)
        else:
            self.nodes[0] = self.add_machine()
        lost = self._watch_nodes(driver)
        codes.append(driver.wait())
        if cut.seconds is None and cut.between != "nodes":
            set_cut(first, second, is_cut=False)
            first.remove()
        resumed = [e for e in self.lines(name, "events.jsonl") if e["event"] == "resumed"]
        after = [row["time"] - begin for row in resumed if row["time"] > begin]
        return {
            "exit codes": codes,
            "Ray nodes that ended of it": lost,
            "seconds from the cut to each resumption": [round(each, 1) for each in after],
            "seconds": round(time.time() - begin, 1),
            **self.result(name),
        }

    def _watch_nodes(self, driver: "subprocess.Popen[bytes]") -> int:
        """Waits for the driver, replaces nodes that end meanwhile; returns how many did."""
        lost, end = 0, time.monotonic() + LIMIT_S
        while driver.poll() is None and time.monotonic() < end:
            for node in self.nodes:
                if node.process.poll() is not None:
                    lost += 1
                    self.replace(node)
                    break
            time.sleep(1)
        if driver.poll() is None:
            driver.kill()
            raise SystemExit(f"the driver did not end within {LIMIT_S:.0f} s; see {self.folder}")
        return lost

    def result(self, run: str) -> dict[str, Any]:
        """Returns what a run has to show: its audit, and whether its steps are the undisturbed."""
        audit = json.loads(
            self._s3.get_object(Bucket="bucket", Key=f"runs/{run}/audit.json")["Body"].read()
        )
        keys = ("step", "samples", "lr", "loss", "ids_digest", "phase", "sources")
        steps, whole = (
            [[row[key] for key in keys] for row in self.lines(each, "trace.jsonl")]
            for each in (run, "undisturbed")
        )
        return {
            **{key: audit[key] for key in ("planned", "trained", "missing", "repeated")},
            "steps are equal": steps == whole,
        }

    def stop(self) -> None:
        """Ends everything."""
        for machine in self.machines:
            machine.remove()
        self._storage.terminate()
        self._storage.wait()

    @staticmethod
    def _until(
        reached: Callable[[], bool], limit_s: float, driver: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        end, why = time.monotonic() + limit_s, "it never held"
        while time.monotonic() < end:
            assert driver is None or driver.poll() is None, "the driver has ended"
            try:
                if reached():
                    return
            except Exception as error:  # storage that is starting
                why = repr(error)
            time.sleep(0.3)
        raise SystemExit(why)


def main() -> int:
    """Tries the cuts; returns 0 if each run ended as an undisturbed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder")
    parser.add_argument("--only", nargs="+", choices=CUTS, default=list(CUTS), help="cuts to try")
    options = parser.parse_args()
    enter_private_world()
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty")
    fleet = Fleet(options.folder.absolute())
    is_well = True
    try:
        code = fleet.start("undisturbed").wait(LIMIT_S)
        print(json.dumps({"undisturbed": {"exit codes": [code], **fleet.result("undisturbed")}}))
        for name in options.only:
            result = fleet.try_cut(name, CUTS[name])
            print(json.dumps({name: result}), flush=True)
            is_well &= not result["missing"] and not result["repeated"]
            is_well &= result["steps are equal"]
            is_well &= result["exit codes"] == ([2, 0] if name == "nodes-ever" else [0])
    finally:
        fleet.stop()
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())

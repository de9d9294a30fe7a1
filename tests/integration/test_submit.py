"""`ray job submit --working-dir .` to a head with token authentication.

Driver and workers run the code that was submitted; it is installed nowhere.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cprec.runs import checkpoint

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
_PORTS = itertools.count(97 * os.getpid())
"""Ports to try; processes of tests that run beside each other begin elsewhere."""

RECIPE = """
run: submitted
storage: {place}/runs
corpus: {place}/corpus
workers: 1
data:
  root: {place}/shoppers
  format: simulated
  domains: [Garden, Office]
  held_out: [Games]
simulate: {{users: 80, items_per_domain: 40}}
tiny: {{hidden: 16, layers: 1, heads: 2, vocabulary: 512, language_steps: 0}}
train: {{global_batch: 16, micro_batch: 8, max_samples: 48}}
checkpoint: {{every_samples: 32}}
"""

WHERE = """
import source_roots
import ray
import cprec
from cluster.ray_session import ray_session

@ray.remote
def files():
    import platform
    import cluster, corpus, cprec
    return [cprec.__file__, corpus.__file__, cluster.__file__, platform.system()]

print("DRIVER", cprec.__file__)
with ray_session("auto", 1):
    print("WORKER", *ray.get(files.remote()))
"""


@dataclass(frozen=True)
class Head:
    """A Ray head for these tests alone.

    Attributes:
        dashboard: URL of its dashboard.
        environment: Environment of its clients.
        tree: The folder that is submitted.
        place: The folder that jobs write to.
    """

    dashboard: str
    environment: dict[str, str]
    tree: Path
    place: Path

    def submit(
        self, *command: str, options: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Submits a command and waits for its end. options: those of `ray job submit`."""
        return self.job("submit", *options, "--working-dir", ".", "--", *command)

    def job(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `ray job` with a verb, such as submit or logs."""
        command = [str(BIN / "ray"), "job", verb, "--address", self.dashboard, *arguments]
        return subprocess.run(
            command,
            cwd=self.tree,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray puts its sockets below it, whose paths must be short.
    place = Path(tempfile.mkdtemp(prefix="cprec-"))
    tree = place / "tree"
    for folder in ("cluster", "corpus", "platform", "jobs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tiny.yaml").write_text(RECIPE.format(place=place))
    (tree / "jobs" / "where.py").write_text(WHERE)
    (place / "home").mkdir()
    dropped = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment |= {
        "HOME": str(place / "home"),
        "PATH": f"{BIN}:{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    # No other node needs what this one holds.
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    # As in ray_cluster.yaml. By default, Ray kills a job three seconds after asking it to stop.
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "120"
    port, dashboard, agent, client = free_ports(4)
    options = {
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 4,
        "temp-dir": place / "ray",
    }
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    with (place / "head.log").open("w") as log:
        # With --block, ending this process ends the head; `ray stop` would end every Ray of this
        # machine.
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        await_dashboard(url, process, place / "head.log")
        yield Head(url, environment, tree, place)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(place, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    """Returns ports that nothing listens on; none of them was returned before.

    They are below those that a system gives to whoever asks for any (32768 and more on Linux), and
    above those of Ray's workers. So nobody takes one before it is used.
    """
    ports: list[int] = []
    while len(ports) < number:
        port = 20_000 + next(_PORTS) % 12_000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


def await_dashboard(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the job server answers: with 401, because the request has no token."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/api/jobs/", timeout=5):
                pytest.fail("the job server answered without a token")
        except urllib.error.HTTPError as refused:
            refused.close()
            if refused.code == 401:
                return
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"no dashboard within two minutes: {log.read_text()}")


def test_driver_and_worker_run_the_submitted_tree(head: Head) -> None:
    ended = head.submit("python", "jobs/where.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    files = {
        line.split()[0]: line.split()[1:]
        for line in ended.stdout.splitlines()
        if line.startswith(("DRIVER ", "WORKER "))
    }
    [driver_file] = files["DRIVER"]
    *worker_files, system = files["WORKER"]
    assert system
    for file in [driver_file, *worker_files]:
        assert file.startswith(str(head.place / "ray")), f"{file} is not of the submitted tree"


def test_without_a_token_nothing_is_submitted(head: Head) -> None:
    stranger = Head(
        head.dashboard, {**head.environment, "RAY_AUTH_TOKEN": "f" * 64}, head.tree, head.place
    )
    ended = stranger.submit("python", "jobs/where.py")
    assert ended.returncode != 0
    assert "DRIVER" not in ended.stdout


def test_the_main_job_succeeds(head: Head) -> None:
    built = head.submit("python", "jobs/build_corpus.py", "tiny.yaml")
    assert built.returncode == 0, built.stdout + built.stderr
    trained = head.submit("python", "jobs/cpt.py", "tiny.yaml")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "0 missing, 0 repeated" in trained.stdout
    assert "succeeded" in trained.stdout + trained.stderr
    assert (head.place / "runs" / "submitted" / "audit.json").is_file()


def test_a_stopped_job_loses_nothing(head: Head) -> None:
    """The run is held in its stable phase, where it would wait for new domains for ever.

    Whether it is stopped while training or while waiting, it saves all steps.
    """
    run = head.place / "runs" / "held"
    command = "python jobs/cpt.py tiny.yaml --schedule.hold_open true --run".split()
    submitted = head.submit(*command, run.name, options=("--no-wait", "--submission-id", "held"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    end = time.monotonic() + 300
    status = run / "status.json"
    while not (status.is_file() and json.loads(status.read_text())["samples"]):
        assert time.monotonic() < end, head.job("logs", "held").stdout
        time.sleep(0.2)
    stopped = head.job("stop", "held")
    assert "was stopped" in stopped.stdout + stopped.stderr, stopped
    logs = head.job("logs", "held").stdout
    assert "interrupted; the same command goes on from the last checkpoint" in logs
    trained = sum(
        json.loads(line)["batch_samples"] for line in (run / "trace.jsonl").read_text().splitlines()
    )
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert sum(e["event"] == "stopped" for e in events) == 1
    assert checkpoint.find_latest(str(run))[0] == checkpoint.CheckpointName(trained, 0)
    assert json.loads(status.read_text())["state"] == "ended"

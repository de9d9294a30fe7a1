"""The spot sidecar, against a server that plays the metadata services of AWS and Google Cloud."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from cluster.processes import spot
from cluster.processes.spot import AwsNotices, GcpNotices, Notice, drain, main, wait_for_notice

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "cluster" / "image" / "Dockerfile").read_text()
AWS_PATH = "/latest/meta-data/spot/instance-action"
GCP_PATH = "/computeMetadata/v1/instance/preempted"
ACTION = '{"action": "terminate", "time": "2100-01-02T03:04:05Z"}'
DEADLINE = datetime(2100, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


class Metadata(ThreadingHTTPServer):
    """Answers as both clouds do.

    Attributes:
        answers: What the next questions for a notice get: status, or text; the last one stays.
            An empty text is no answer at all until the client has given up.
        tokens: The tokens that were handed out; only the last one is taken.
        token_status: Status of the answer to a request for a token.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers: list[int | str] = [404]
        self.tokens: list[str] = []
        self.token_status = 200
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Metadata

    def _send(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token":
            self._send(404)
        elif "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            self._send(400)
        else:
            self.server.tokens.append(f"token-{len(self.server.tokens)}")
            self._send(self.server.token_status, self.server.tokens[-1])

    def do_GET(self) -> None:
        tokens = self.server.tokens
        is_aws = self.path == AWS_PATH and self.headers["X-aws-ec2-metadata-token"] in tokens[-1:]
        is_gcp = self.path == GCP_PATH and self.headers["Metadata-Flavor"] == "Google"
        if not is_aws and not is_gcp:
            self._send(401 if self.path == AWS_PATH else 403)
            return
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, int):
            self._send(answer)
        elif answer:
            self._send(200, answer)
        else:
            self.server.ended.wait(10)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class FakeNodes:
    """Nodes of this machine: each is drained at the n-th request, and ends when it is."""

    def __init__(self, *names: str, refusals: int = 0, stay: bool = False) -> None:
        self.left, self.refusals, self.stay = set(names), refusals, stay
        self.drained: list[tuple[str, Notice]] = []

    def alive(self) -> set[str]:
        return set(self.left)

    def drain(self, node_id: str, notice: Notice) -> None:
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("the GCS is away")
        self.drained.append((node_id, notice))
        if not self.stay:
            self.left.remove(node_id)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "RETRY_S", 0.01)
    monkeypatch.setattr(spot, "ANSWER_S", 0.2)


# -- one question


def test_aws_has_no_notice_and_then_one(metadata: Metadata) -> None:
    notices = AwsNotices(metadata.url)
    assert notices.poll() is None
    metadata.answers = [ACTION]
    assert notices.poll() == Notice(DEADLINE, "AWS: terminate at 2100-01-02T03:04:05Z")
    assert len(metadata.tokens) == 1  # which is used again


def test_aws_gets_a_new_token_when_the_old_one_is_no_longer_taken(metadata: Metadata) -> None:
    notices = AwsNotices(metadata.url)
    notices.poll()
    metadata.tokens.append("of another process")
    with pytest.raises(OSError, match="401"):
        notices.poll()
    assert notices.poll() is None


def test_a_refused_token_is_asked_for_again(metadata: Metadata) -> None:
    notices, metadata.token_status = AwsNotices(metadata.url), 503
    with pytest.raises(OSError, match="503"):
        notices.poll()
    metadata.token_status = 200
    assert notices.poll() is None


def test_gcp_has_no_notice_and_then_one(metadata: Metadata) -> None:
    notices, metadata.answers = GcpNotices(metadata.url, seconds=30), ["FALSE", "TRUE"]
    assert notices.poll() is None
    notice = notices.poll()
    assert notice is not None
    assert 25 < notice.deadline - time.time() <= 30


@pytest.mark.parametrize("cloud", [AwsNotices, GcpNotices])
@pytest.mark.parametrize(
    "answer",
    ["", 500, 403, "soon", "[]", "7", "null", "\x00", "é", '{"action": "stop"}', "{" * 9000]
    + [f'{{"action": "stop", "time": {time_}}}' for time_ in ('"soon"', "7", "null")],
)
def test_what_is_no_answer_is_said_so(
    metadata: Metadata, cloud: type[AwsNotices | GcpNotices], answer: int | str
) -> None:
    metadata.answers = [answer]
    with pytest.raises((OSError, ValueError)):
        cloud(metadata.url).poll()


def test_nobody_answers() -> None:
    with pytest.raises(OSError, match="refused"):
        AwsNotices("http://127.0.0.1:1").poll()


def test_no_proxy_is_asked(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert AwsNotices(metadata.url).poll() is None


# -- until there is a notice


def test_failures_end_nothing_and_are_said_once(
    metadata: Metadata, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    metadata.answers = [404, 500, "garbage", "", 500, 404, 500, ACTION]
    notice = wait_for_notice(AwsNotices(metadata.url).poll, threading.Event(), 0.01, 30)
    assert notice.deadline == DEADLINE
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    failed = "no usable answer, asking on"
    assert said == [failed, "answers again", failed]


def test_sigterm_is_a_notice(metadata: Metadata) -> None:
    terminated = threading.Event()
    threading.Timer(0.05, terminated.set).start()
    notice = wait_for_notice(AwsNotices(metadata.url).poll, terminated, 3600, 30)
    assert notice.reason == "SIGTERM"
    assert 25 < notice.deadline - time.time() <= 30


# -- draining


def test_every_node_of_the_machine_is_drained_once_and_then_waited_for() -> None:
    nodes, notice = FakeNodes("a", "b", refusals=3), Notice(time.time() + 60, "told")
    assert drain(nodes, notice, patience_s=60)
    assert sorted(nodes.drained) == [("a", notice), ("b", notice)]


@pytest.mark.parametrize("names", [(), ("a",)])
def test_draining_ends_at_the_deadline(names: tuple[str, ...]) -> None:
    nodes = FakeNodes(*names, stay=True)
    assert drain(nodes, Notice(time.time() + 0.05, "told"), patience_s=60)
    assert len(nodes.drained) == len(names)


@pytest.mark.parametrize(("seconds", "patience_s"), [(60.0, 0.05), (0.05, 60.0)])
def test_a_node_that_ray_does_not_drain_is_given_up(seconds: float, patience_s: float) -> None:
    begin = time.monotonic()
    nodes = FakeNodes("a", refusals=1 << 30)
    assert not drain(nodes, Notice(time.time() + seconds, "told"), patience_s)
    assert time.monotonic() - begin < 30


# -- the process


def run(*arguments: str, nodes: FakeNodes) -> int:
    """Runs the sidecar in this process, whose handler of SIGTERM it would replace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        return main(arguments, nodes)


@pytest.mark.parametrize(("source", "answer"), [("aws", ACTION), ("gcp", "TRUE")])
def test_a_notice_drains_the_node(metadata: Metadata, source: str, answer: str) -> None:
    metadata.answers = [404, answer] if source == "aws" else ["FALSE", answer]
    nodes = FakeNodes("a")
    options = ["--metadata", metadata.url, "--every", "0.01", "--seconds", "7"]
    assert run(source, *options, nodes=nodes) == 0
    [(name, notice)] = nodes.drained
    assert name == "a"
    assert (notice.deadline == DEADLINE) == (source == "aws")
    assert source == "aws" or notice.deadline - time.time() < 7


def test_a_file_and_a_hook_drain_the_node(tmp_path: Path) -> None:
    file = tmp_path / "notice"
    threading.Timer(0.05, file.touch).start()
    for arguments in (["file", "--file", str(file), "--every", "0.01"], ["now"]):
        nodes = FakeNodes("a")
        assert run(*arguments, nodes=nodes) == 0
        assert [name for name, _ in nodes.drained] == ["a"]


@pytest.mark.parametrize("arguments", [["file"], ["aws", "--file", "x"], ["azure"], []])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments, FakeNodes())


def test_the_file_stands_alone(tmp_path: Path) -> None:
    """The image holds this file only, so it must not import any other of ours."""
    alone = tmp_path / "spot.py"
    alone.write_text(Path(spot.__file__).read_text())
    command = [sys.executable, "-S", str(alone), "--help"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={}, check=True, capture_output=True, text=True
    )
    assert "--metadata" in ended.stdout


# -- the manifests


def test_every_worker_on_aws_has_one_and_the_image_holds_it() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    commands = config["worker_start_ray_commands"]
    [start] = [command for command in commands if "spot.py" in command]
    assert start == commands[-1]
    [file] = re.findall(r"^COPY cluster/processes/spot\.py (\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"python {file} aws <" in start


def test_on_kubernetes_a_worker_is_drained_before_it_ends() -> None:
    file = ROOT / "cluster" / "kuberay" / "base" / "ray-cluster.yaml"
    [group] = yaml.safe_load(file.read_text())["spec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    _, script, *arguments = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert f"COPY cluster/processes/spot.py {script}\n" in DOCKERFILE
    [source, seconds] = arguments
    assert source == "now"
    # The hook counts as a part of the grace period, after which the pod is killed.
    assert int(seconds.removeprefix("--seconds=")) <= pod["terminationGracePeriodSeconds"] - 30

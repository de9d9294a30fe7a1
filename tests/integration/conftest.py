"""Real services on this machine, shared by the integration tests."""

import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import boto3
import pytest

from cluster.ray_session import ray_session
from tests.integration import jobs

_BUCKETS = itertools.count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 server on the loopback interface that enforces conditional puts.

    It runs in a process of its own, because clients may hold the interpreter lock of this one.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.integration.s3_server", str(port)]
    with subprocess.Popen(
        command, cwd=jobs.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for(server, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait_for(server: "subprocess.Popen[bytes]", port: int, limit_s: float = 60) -> None:
    """Waits until the server listens on its port."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"the S3 server did not listen on port {port} (exit code {server.poll()})")


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[None]:
    """One local Ray session for all tests of a file that call workflows or jobs in this process.

    Otherwise each call would start a session of its own, which takes longer.
    """
    with ray_session("local", 4):
        yield


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket.

    The environment of this process, and of those that it starts, points to the server.
    """
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{next(_BUCKETS)}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"

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
    """An S3 server on the loopback interface that enforces conditional puts; in its own process, as clients may hold this one's interpreter lock."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
    """One local Ray for the tests of a file that call the jobs' functions in this process: each call would start its own, which costs more."""
    with ray_session("local", 2):
        yield


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an empty bucket; the environment points to its server, for this process and those that it starts."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{next(_BUCKETS)}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"

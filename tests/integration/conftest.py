"""Real services on this machine, shared by the integration tests."""

import itertools
import socket
import subprocess
import sys
import urllib.request
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
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.s3_server", str(listening.fileno())],
            cwd=jobs.ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
        )
    with server:
        try:
            # Its socket takes connections before it answers, and none once it has ended.
            urllib.request.urlopen(url, timeout=jobs.LIMIT_S).close()
            yield url
        finally:
            server.terminate()


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

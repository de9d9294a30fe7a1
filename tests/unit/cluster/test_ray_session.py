"""Which Ray a job connects to, what code it sends to the workers, and whose SIGTERM is; no Ray is started here."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from cluster import ray_session


def test_auto_is_the_cluster_of_the_submitted_job_else_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_session.resolve_address("auto") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_session.resolve_address("auto") == "auto"


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379", "ray://head:10001"])
def test_a_named_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_session.resolve_address(address) == address


def test_workers_get_the_three_packages() -> None:
    folders = [Path(folder) for folder in ray_session.package_folders()]
    assert {folder.name for folder in folders} == {"cprec", "corpus", "cluster"}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def starts(terminated: bool) -> None:
    """What `ray.init` does with SIGTERM, which may come meanwhile."""
    with ray_session.preserve_sigterm_handler():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)


def test_sigterm_stays_what_it_was_before_ray_took_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    starts(terminated=False)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_while_ray_starts_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        starts(terminated=True)
    assert signal.getsignal(signal.SIGTERM) == before

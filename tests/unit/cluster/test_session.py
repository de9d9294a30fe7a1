"""Which Ray a job connects to, and what code it sends to the workers; no Ray is started here."""

from pathlib import Path

import pytest

from cluster import session


def test_auto_is_the_cluster_of_the_submitted_job_else_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert session.resolve_address("auto") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert session.resolve_address("auto") == "auto"


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379", "ray://head:10001"])
def test_a_named_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert session.resolve_address(address) == address


def test_workers_get_the_three_packages() -> None:
    folders = [Path(folder) for folder in session.code()]
    assert {folder.name for folder in folders} == {"cprec", "corpus", "cluster"}
    assert all((folder / "__init__.py").is_file() for folder in folders)

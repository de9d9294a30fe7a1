"""Requests reach a run from its start on; those that nobody waits for are not carried out."""

import time
from pathlib import Path

import pytest

from cluster.errors import RunError
from cprec.runs.control import control_channel
from cprec.runs.control.control_channel import ControlChannel
from cprec.runs.control.lease import claim
from cprec.runs.records import Status


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "trunk")


def test_a_request_whose_asker_is_interrupted_is_taken_back(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim(run, "trunk", "c", print) as held:
        channel = ControlChannel(held.lease)
        actions: list[str] = []

        def interrupt(seconds: float) -> None:
            actions.extend(action for _, action in channel.pending_requests())
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            control_channel.send_request(run, "trunk", "anneal", 60.0)
        assert actions == ["anneal"]
        assert channel.pending_requests() == []


def test_a_request_to_a_run_that_has_ended_is_refused_at_once(run: str) -> None:
    with claim(run, "trunk", "c", print):
        pass
    with pytest.raises(RunError, match="the run trunk is not under way"):
        control_channel.send_request(run, "trunk", "hold", 60.0)


def test_a_run_that_starts_is_told_of_a_new_version_before_it_has_a_status(run: str) -> None:
    storage = str(Path(run).parent)
    with claim(run, "trunk", "c", print) as held:
        assert control_channel.notify_runs(storage, "another corpus", 1.0) == []
        assert control_channel.notify_runs(storage, "c", 1.0) == [
            "trunk is starting, and looks at the corpus before its first segment"
        ]
        ended = Status(run="trunk", owner=held.lease.owner, state="ended", samples=96)
        ControlChannel(held.lease).publish(ended)
        assert control_channel.notify_runs(storage, "c", 1.0) == []
    assert control_channel.notify_runs(storage, "c", 1.0) == []

"""A run has one driver, from its start on; requests that nobody waits for are not carried out."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import RunError
from cprec.runs import control_channel, status
from cprec.runs.control_channel import ControlChannel
from cprec.runs.records import STATUS_FILE, Owner, Status
from cprec.runs.status import (
    MAX_SILENCE_S,
    STALE_S,
    current_owner,
    describe_status,
    is_running,
    read_status,
)

HERE = socket.gethostname()
ALIVE = os.getppid()
CLAIM_AND_WAIT = """
import sys
from cprec.runs import status

with status.claim(sys.argv[1], "trunk"):
    print("mine", flush=True)
    input()
"""


def owner(host: str, pid: int, token: str) -> Owner:
    return Owner(host=host, pid=pid, token=token)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "trunk")


def write(run: str, owner: Owner, age_s: float = 0.0, state: str = "training") -> Status:
    """Writes the status that an owner would have written some time ago, and returns it."""
    values = {
        "run": "trunk",
        "samples": 64,
        "answers": {},
        "state": state,
        "time": time.time() - age_s,
        "owner": owner.to_json(),
    }
    Path(run).mkdir(exist_ok=True)
    (Path(run) / STATUS_FILE).write_text(json.dumps(values))
    return Status.from_json(values)


def claim(run: str) -> None:
    """Claims a run and releases it."""
    with status.claim(run, "trunk"):
        state = read_status(run)
        assert state is not None
        assert (state.state, state.owner.pid, is_running(state)) == (
            "starting",
            os.getpid(),
            True,
        )


@contextmanager
def dead() -> Iterator[int]:
    """Yields the pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        yield process.pid


def test_a_second_driver_is_refused_while_the_first_one_starts_and_let_in_when_it_was_killed(
    run: str,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_WAIT, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "mine\n"
        with pytest.raises(
            RunError, match=f"trained by process {first.pid} on {HERE}, at 0 samples"
        ):
            claim(run)
        first.kill()
    claim(run)


@pytest.mark.parametrize("age_s", [0.0, 2 * STALE_S, MAX_SILENCE_S - 5])
def test_on_its_own_host_a_driver_that_lives_keeps_its_run_though_it_is_silent(
    run: str, age_s: float
) -> None:
    write(run, owner(HERE, ALIVE, "first"), age_s)
    with pytest.raises(RunError, match=f"trained by process {ALIVE}"):
        claim(run)


def test_nobody_waits_for_a_driver_that_is_dead_or_was_silent_for_too_long(run: str) -> None:
    with dead() as pid:
        write(run, owner(HERE, pid, "first"))
        claim(run)
    write(run, owner(HERE, ALIVE, "first"), MAX_SILENCE_S + 5)
    claim(run)


@pytest.mark.parametrize(
    "unseen", [owner("elsewhere", 1, "first"), owner(HERE, os.getpid(), "a container before")]
)
def test_where_a_driver_cannot_be_seen_the_age_of_its_state_decides(
    run: str, unseen: Owner
) -> None:
    write(run, unseen, STALE_S - 5)
    with pytest.raises(RunError, match="if it died, wait 20 s"):
        claim(run)
    write(run, unseen, STALE_S + 5)
    claim(run)


def test_of_two_that_start_at_once_the_one_that_wrote_last_goes_on(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        time, "sleep", lambda seconds: write(run, owner(HERE, ALIVE, "other"), state="starting")
    )
    with pytest.raises(RunError, match=f"trained by process {ALIVE}"):
        claim(run)
    state = read_status(run)
    assert state is not None
    assert state.owner.token == "other"


def test_a_claim_without_training_leaves_no_trace(run: str) -> None:
    claim(run)
    assert read_status(run) is None
    before = write(run, owner("elsewhere", 1, "first"), state="ended")
    claim(run)
    assert read_status(run) == before


def test_what_the_controller_wrote_meanwhile_stays(run: str) -> None:
    with status.claim(run, "trunk"):
        me = current_owner()
        ended = Status(run="trunk", owner=me, state="ended", samples=96)
        ControlChannel(run, me).publish(ended)
    state = read_status(run)
    assert state is not None
    assert (state.state, state.samples) == ("ended", 96)


def test_a_run_at_its_first_start_is_described(run: str) -> None:
    with status.claim(run, "trunk"):
        state = read_status(run)
        assert state is not None
        assert describe_status(state) == "trunk: starting"
        assert control_channel.notify_runs(str(Path(run).parent), "any", 1.0) == []


def test_a_request_whose_asker_is_interrupted_is_taken_back(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, owner(HERE, ALIVE, "driver"))
    channel = ControlChannel(run, owner(HERE, ALIVE, "driver"))
    actions: list[str] = []

    def interrupt(seconds: float) -> None:
        actions.extend(action for _, action in channel.pending_requests())
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        control_channel.send_request(run, "trunk", "anneal", 60.0)
    assert actions == ["anneal"]
    assert channel.pending_requests() == []

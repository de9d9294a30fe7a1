"""A run has one driver from its start on, and what another one has taken over is not written."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cluster import storage
from cluster.errors import RunError
from cprec.runs.control import lease, liveness
from cprec.runs.control.control_channel import ControlChannel
from cprec.runs.control.lease import Lease, LeaseLostError, claim, current_owner
from cprec.runs.control.liveness import (
    MAX_SILENCE_S,
    STALE_S,
    Liveness,
    find_liveness,
    judge,
    read_lease,
)
from cprec.runs.control.status import describe_run, read_status
from cprec.runs.records import LeaseRecord, Owner, Status

HERE = socket.gethostname()
ALIVE = os.getppid()
FUTURE_S = -86_400.0
"""The age of what a clock wrote that is a day ahead."""
CLAIM_AND_WAIT = """
import sys
from cprec.runs.control.lease import claim

with claim(sys.argv[1], "trunk", "corpus", print) as held:
    print("mine", flush=True)
    input()
    held.lost.wait(30)
    held.lease.require()
"""


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "trunk")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the intervals of leases a fortieth of what they are."""
    for name in ("RENEWAL_S", "STALE_S", "WATCH_S", "POLL_S"):
        monkeypatch.setattr(liveness, name, getattr(liveness, name) / 40)


def write(
    run: str, host: str, pid: int, age_s: float = 0.0, number: int = 1, ended: bool = False
) -> LeaseRecord:
    """Writes the lease that an owner would have renewed some time ago, and returns it."""
    owner = Owner(host=host, pid=pid, token="first")
    record = LeaseRecord(
        number=number, owner=owner, time=time.time() - age_s, run="trunk", corpus="c", ended=ended
    )
    file = Path(run) / "leases" / f"{number:06d}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(".new")  # nobody reads a half
    whole.write_text(json.dumps(record.to_json()))
    whole.replace(file)
    return record


def try_claim(run: str) -> int:
    """Claims a run and releases it; returns the number of the lease."""
    with claim(run, "trunk", "c", lambda _: None) as held:
        assert find_liveness(run)[1] is Liveness.RUNNING
        return held.lease.number


@contextmanager
def renewing(run: str, record: LeaseRecord, age_s: float) -> Iterator[None]:
    """Renews the lease of another driver in a thread, by a clock that is off."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(liveness.RENEWAL_S):
            write(run, record.owner.host, record.owner.pid, age_s, record.number)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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
        with pytest.raises(RunError, match=f"trained by process {first.pid} on {HERE}"):
            try_claim(run)
        first.kill()
    assert try_claim(run) == 2


def test_a_lease_is_renewed_from_claim_to_end_whatever_the_process_does(
    run: str, fast: None
) -> None:
    with claim(run, "trunk", "c", print):
        seen: set[float] = set()
        deadline = time.monotonic() + 30
        while len(seen) < 4:  # this thread is busy, and nobody asks a controller
            record = read_lease(run)
            assert record is not None
            seen.add(record.time)
            assert time.monotonic() < deadline
    record = read_lease(run)
    assert record is not None
    assert record.ended
    before = record.time
    time.sleep(5 * liveness.RENEWAL_S)
    assert read_lease(run) == record.model_copy(update={"time": before})


def test_storage_that_fails_for_a_moment_does_not_end_the_renewal(
    run: str, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = storage.write_text
    failures = [OSError("no room on the device")] * 3

    def fail_then_write(uri: str, content: str) -> None:
        if failures:
            raise failures.pop()
        write_text(uri, content)

    with claim(run, "trunk", "c", print):
        first = read_lease(run)
        monkeypatch.setattr(lease, "write_text", fail_then_write)
        assert first is not None
        assert liveness.watch(run, first, 30)
    assert not failures


@pytest.mark.parametrize("age_s", [0.0, 2 * STALE_S, MAX_SILENCE_S - 5])
def test_on_its_own_host_a_driver_that_lives_keeps_its_run_though_it_is_silent(
    run: str, age_s: float
) -> None:
    write(run, HERE, ALIVE, age_s)
    with pytest.raises(RunError, match=f"trained by process {ALIVE}"):
        try_claim(run)


def test_nobody_waits_for_a_driver_that_is_dead_or_has_ended(run: str) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        write(run, HERE, process.pid)
        assert try_claim(run) == 2
    write(run, "elsewhere", 1, number=3, ended=True)
    assert try_claim(run) == 4


@pytest.mark.parametrize("age_s", [FUTURE_S, 0.0, 5.0, 2 * STALE_S, 2 * MAX_SILENCE_S])
@pytest.mark.parametrize(
    ("host", "pid"), [("elsewhere", 1), (HERE, os.getpid())], ids=["another host", "a container"]
)
def test_where_a_driver_cannot_be_seen_its_clock_counts_for_nothing(
    run: str, fast: None, host: str, pid: int, age_s: float
) -> None:
    """It is refused while the other one renews, and let in a moment after it stopped."""
    record = write(run, host, pid, age_s)
    with renewing(run, record, age_s), pytest.raises(RunError, match=f"process {pid} on {host}"):
        try_claim(run)
    assert try_claim(run) == 2


def test_a_driver_of_this_host_with_a_clock_a_day_ahead_blocks_nobody_for_a_day(
    run: str, fast: None
) -> None:
    write(run, HERE, ALIVE, FUTURE_S)
    assert try_claim(run) == 2


def test_of_many_that_start_in_the_same_second_one_goes_on(run: str) -> None:
    """They are on hosts of their own, so that none can see another one's process."""
    barrier, results = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        mine = Lease(run, "trunk", 1, current_owner())
        record = LeaseRecord(number=1, owner=mine.owner, run="trunk", corpus="c")
        results.append(lease._create(mine, record))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_the_one_that_comes_second_is_refused_by_name(
    run: str, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_create", lambda *_: bool(write(run, "elsewhere", 7)) and False)
    with pytest.raises(RunError, match="trained by process 7 on elsewhere"):
        try_claim(run)


def test_a_lease_whose_creation_was_answered_twice_is_held(run: str) -> None:
    mine = Lease(run, "trunk", 1, current_owner())
    record = LeaseRecord(number=1, owner=mine.owner, run="trunk", corpus="c")
    assert lease._create(mine, record)
    assert lease._create(mine, record)


def test_a_paused_driver_that_wakes_up_writes_nothing_over_its_successor(
    run: str, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_WAIT, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as paused:
        assert paused.stdout is not None
        assert paused.stdin is not None
        assert paused.stdout.readline() == "mine\n"
        paused.send_signal(signal.SIGSTOP)
        # As on another host: its process cannot be seen.
        monkeypatch.setattr(liveness, "is_alive", lambda _: None)
        with claim(run, "trunk", "c", print) as held:
            written = (Path(run) / "leases" / "000001.json").read_text()
            ControlChannel(held.lease).publish(
                Status(run="trunk", owner=held.lease.owner, state="training", samples=64)
            )
            paused.send_signal(signal.SIGCONT)
            _, err = paused.communicate("\n", timeout=60)
            assert "LeaseLostError: the run trunk was taken over by process" in err
            assert (Path(run) / "leases" / "000001.json").read_text() == written
            assert not held.lost.is_set()
        status = read_status(run)
        assert status is not None
        assert (status.lease, status.samples) == (2, 64)


def test_whoever_lost_the_lease_stops_renewing_and_cannot_write(run: str, fast: None) -> None:
    with claim(run, "trunk", "c", print) as held:
        successor = write(run, "elsewhere", 3, number=held.lease.number + 1)
        assert held.lost.wait(30)
        with pytest.raises(LeaseLostError, match="taken over by process 3 on elsewhere"):
            held.lease.require()
        channel = ControlChannel(held.lease)
        with pytest.raises(LeaseLostError):
            channel.publish(Status(run="trunk", owner=held.lease.owner, state="training"))
    assert read_lease(run) == successor
    assert read_status(run) is None


def test_an_unreadable_neighbour_of_a_lease_is_passed_over(run: str) -> None:
    assert try_claim(run) == 1
    for name in (".000002.json.ab.partial", "²000002.json", "notes.txt", "000003.json.bak"):
        (Path(run) / "leases" / name).write_text("{")
    assert try_claim(run) == 2


# -- what people are told


def status_under(run: str, number: int, state: str, age_s: float, phase: str = "stable") -> None:
    values = {
        "run": "trunk", "lease": number, "state": state, "time": time.time() - age_s,
        "owner": {"host": HERE, "pid": ALIVE, "token": "first"}, "phase": phase, "samples": 64,
        "issued": 128, "W": 8, "S": 512, "A": 600, "lr": 1e-3, "corpus_version": 0,
    }  # fmt: skip
    Path(run).mkdir(exist_ok=True)
    (Path(run) / "status.json").write_text(json.dumps(values))


def first_line(run: str) -> str:
    description = describe_run(run, "trunk")
    assert description is not None
    return description.splitlines()[0]


def test_a_run_that_starts_for_minutes_is_starting_all_the_while(run: str) -> None:
    assert describe_run(run, "trunk") is None
    with claim(run, "trunk", "c", print):
        assert first_line(run) == "trunk: starting"
        status_under(run, 0, "training", 3600.0)  # of a start before
        assert first_line(run).startswith("trunk: starting again")
    assert "not under way" in first_line(run)


@pytest.mark.parametrize(
    ("state", "age_s", "phase", "expected"),
    [
        ("training", 1.0, "stable", "trunk: training, stable, 64 of 600 samples"),
        ("waiting", 1.0, "stable", "trunk: waiting, stable"),
        ("training", 90.0, "stable", "trunk: training as of 90 s ago, stable"),
        ("ended", 1.0, "done", "trunk: finishing (audit, report, registration), done"),
    ],
)
def test_a_run_under_way_is_never_called_dead(
    run: str, state: str, age_s: float, phase: str, expected: str
) -> None:
    """Its controller may be silent for long: it saves, or waits for MLflow."""
    write(run, "elsewhere", 1)
    status_under(run, 1, state, age_s, phase)
    assert first_line(run).startswith(expected)


@pytest.mark.parametrize(
    ("ended", "age_s", "status", "expected"),
    [
        (True, 5.0, ("ended", "done"), "trunk: ended, done"),
        (True, 5.0, ("ended", "stable"), "trunk: stopped, stable"),
        (True, 5.0, None, "trunk: not under way (its last start ended before the first step)"),
        (False, 3600.0, ("training", "stable"), "trunk: not under way (last seen 3,6"),
        (False, 90.0, ("training", "stable"), "trunk: not known whether it is under way: nothing"),
        (False, FUTURE_S, None, "trunk: not known whether it is under way: nothing heard of"),
    ],
)
def test_a_run_that_is_not_seen_is_described_as_far_as_is_known(
    run: str,
    fast: None,
    ended: bool,
    age_s: float,
    status: tuple[str, str] | None,
    expected: str,
) -> None:
    write(run, "elsewhere", 1, age_s, ended=ended)
    if status is not None:
        status_under(run, 1, status[0], 3600.0, status[1])
    assert first_line(run).startswith(expected)


def test_a_reader_sees_that_a_driver_with_a_wrong_clock_is_at_work(run: str, fast: None) -> None:
    record = write(run, "elsewhere", 1, FUTURE_S)
    assert judge(record) is Liveness.UNKNOWN
    with renewing(run, record, FUTURE_S):
        assert find_liveness(run)[1] is Liveness.RUNNING


def test_several_runs_are_held_at_once_by_one_process(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(claim(str(tmp_path / name), name, "c", print))
        for name in ("a", "b"):
            assert describe_run(str(tmp_path / name), name) == f"{name}: starting"

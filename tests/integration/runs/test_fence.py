"""A driver that was paused between its look at the lease and its write changes nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import (
    create_text,
    exists,
    filesystem,
    is_remote,
    join,
    read_bytes,
    read_bytes_if_exists,
    sha256,
)
from cprec.runs import checkpoint
from cprec.runs.checkpoint import CheckpointName
from cprec.runs.control import liveness
from cprec.runs.control.attempts import begin_attempt, find_successor, list_attempts
from cprec.runs.control.lease import Lease, LeaseLostError, claim
from cprec.runs.control.status import read_status, write_status
from cprec.runs.events import Held
from cprec.runs.json_lines import open_events, open_trace, read_events, read_trace
from cprec.runs.records import FileDigest, Manifest, Status
from cprec.runs.run_plan import RunPlan
from cprec.schedule.ledger import Ledger
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, build_plan
from tests.records import trace_row

PLAN: Plan = build_plan(
    PlanSettings(0, 1e-5, 1e-3, 0.1), [Portion("domain/A", 0, 0, 100)], [Portion("mixed", 0, 0, 50)]
)
RUN_PLAN = RunPlan("fingerprint", 0, PLAN, ("A",), ())


@pytest.fixture(params=["disk", "store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The folder of a run, on a disk and on an object store."""
    storage = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3")
    return join(storage, "trunk")


@pytest.fixture
def first(run: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    """The lease of a driver that has written all files of its run."""
    # It is on another host, so that others cannot see whether its process lives.
    monkeypatch.setattr(liveness, "is_alive", lambda _: None)
    monkeypatch.setattr(liveness, "RENEWAL_S", 1e6)
    for name in ("STALE_S", "WATCH_S", "POLL_S"):
        monkeypatch.setattr(liveness, name, getattr(liveness, name) / 100)
    with claim(run, "trunk", "corpus", print) as held:
        write_everything(held.lease)
        yield held.lease


def write_everything(lease: Lease) -> None:
    RUN_PLAN.write(lease.run_uri, lease)
    write_status(lease.run_uri, Status(run="trunk", owner=lease.owner, state="training"), lease)
    for file, record in (
        (open_events(lease.run_uri, lease), Held(samples=0)),
        (open_trace(lease.run_uri, lease), trace_row()),
    ):
        file.append(record)  # type: ignore[arg-type]
        file.flush()
    save(lease, 10)
    save(lease, 20)


def save(lease: Lease, samples: int, attempt: int = 0) -> None:
    uri = checkpoint.checkpoint_uri(lease.run_uri, CheckpointName(samples, attempt))
    lease.replace(join(uri, "adapter", "weights"), b"w")
    lease.replace(
        join(uri, checkpoint.LEDGER), json.dumps(Ledger(PLAN, samples).to_json()).encode()
    )
    digests = {
        name: FileDigest(size=len(content), sha256=sha256(content))
        for name in ("adapter/weights", checkpoint.LEDGER)
        for content in [read_bytes(join(uri, name))]
    }
    manifest = Manifest(
        files=digests, digest=checkpoint.digest_of_list(digests), lease=lease.number
    )
    lease.replace(join(uri, checkpoint.MANIFEST), json.dumps(manifest.to_json()).encode())


def append_event(lease: Lease) -> Callable[[], None]:
    events = open_events(lease.run_uri, lease)
    events.append(Held(samples=64))
    return events.flush


def append_step(lease: Lease) -> Callable[[], None]:
    trace = open_trace(lease.run_uri, lease)
    trace.append(trace_row(step=1))
    return trace.flush


def cut_trace(lease: Lease) -> Callable[[], None]:
    trace = open_trace(lease.run_uri, lease)
    return lambda: trace.retain(lambda row: False)


Write = Callable[[Lease], Callable[[], object]]
"""Begins a write under a lease, and returns what ends it."""

WRITES: dict[str, Write] = {
    "plan": lambda lease: lambda: replace(RUN_PLAN, hold=True).write(lease.run_uri, lease),
    "status": lambda lease: (
        lambda: write_status(
            lease.run_uri, Status(run="trunk", owner=lease.owner, state="ended"), lease
        )
    ),
    "an event": append_event,
    "a step": append_step,
    "the trace cut": cut_trace,
    "events opened": lambda lease: lambda: open_events(lease.run_uri, lease),
    "a manifest": lambda lease: (
        lambda: lease.replace(
            join(lease.run_uri, "checkpoints", "000000000020-0", "manifest.json"), b"{}"
        )
    ),
}


def skip_manifest_on_store(run: str, write: object) -> None:
    if is_remote(run) and write is WRITES["a manifest"]:
        pytest.skip("it counts, or not, by the attempt that begins later: see below")


def contents(run: str) -> dict[str, bytes]:
    """Returns the files of a run but the leases."""
    fs, path = filesystem(run)
    files = [str(file) for file in fs.find(path) if "/leases/" not in str(file)]
    return {file: bytes(fs.cat_file(file)) for file in files}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_driver_paused_between_its_look_and_its_write_changes_nothing(
    run: str,
    first: Lease,
    monkeypatch: pytest.MonkeyPatch,
    write: Write,
) -> None:
    """At its look the run is still its own; when it wakes up, another one has taken over."""
    skip_manifest_on_store(run, write)
    begun = write(first)
    require = Lease.require
    seen: list[dict[str, bytes]] = []
    with ExitStack() as stack:

        def look_and_fall_asleep(lease: Lease) -> None:
            require(lease)
            if lease == first and not seen:
                seen.append({})  # it sleeps once
                stack.enter_context(claim(run, "trunk", "corpus", print))
                seen.append(contents(run))

        monkeypatch.setattr(Lease, "require", look_and_fall_asleep)
        with pytest.raises(LeaseLostError, match="trunk was taken over by process"):
            begun()
        assert contents(run) == seen[1]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_driver_whose_look_is_late_is_refused_as_well(
    run: str, first: Lease, write: Callable[[Lease], Callable[[], object]]
) -> None:
    begun = write(first)
    with claim(run, "trunk", "corpus", print):
        before = contents(run)
        with pytest.raises(LeaseLostError, match="trunk was taken over by process"):
            begun()
        assert contents(run) == before


def test_whoever_takes_over_reads_and_writes_on(run: str, first: Lease) -> None:
    with claim(run, "trunk", "corpus", print) as second:
        assert RunPlan.read(run) == replace(RUN_PLAN, lease=1)
        assert [event.lease for event in read_events(run)] == [1]
        append_event(second.lease)()
        append_step(second.lease)()
        RUN_PLAN.write(run, second.lease)
        assert [event.lease for event in read_events(run)] == [1, 2]
        assert [row.lease for row in read_trace(run)] == [1, 2]
        assert RunPlan.read(run) == replace(RUN_PLAN, lease=2)
        manifest = join(run, "checkpoints", "000000000020-0", "manifest.json")
        assert json.loads(read_bytes(manifest))["lease"] == 1


def test_a_file_that_was_not_there_is_not_made_by_the_one_before(
    run: str, monkeypatch: pytest.MonkeyPatch, first: Lease
) -> None:
    """The driver before was paused ahead of its first plan."""
    for name in ("plan.json", "status.json", "trace.jsonl", "events.jsonl"):
        first.remove(join(run, name))
    with claim(run, "trunk", "corpus", print):
        assert RunPlan.read(run) is None
        assert read_status(run) is None
        assert read_trace(run) == []
        assert read_events(run) == []
        with pytest.raises(LeaseLostError):
            RUN_PLAN.write(run, first)
        assert RunPlan.read(run) is None


def test_what_a_paused_worker_completes_beyond_a_later_attempt_does_not_count(
    run: str, first: Lease
) -> None:
    attempt = begin_attempt(first, 0, 0, None, 1)
    assert checkpoint.find_latest(run)[0] == CheckpointName(20, 0)
    with claim(run, "trunk", "corpus", print) as held:
        later = begin_attempt(held.lease, 0, 20, "the checkpoint at 20", 1)
        assert (attempt.number, later.number) == (0, 1)
        if is_remote(run):  # on a disk its write is refused
            save(held.lease, 30, attempt=0)
            assert checkpoint.find_latest(run)[0] == CheckpointName(20, 0)
            assert "attempt 1 began before it, at 20" in checkpoint.find_latest(run)[1][0]
        save(held.lease, 25, attempt=1)
        assert checkpoint.find_latest(run)[0] == CheckpointName(25, 1)
        checkpoint.prune(run, 2, (), CheckpointName(25, 1), held.lease)
        assert CheckpointName(20, 0) in checkpoint.list_checkpoints(run)
        assert CheckpointName(10, 0) not in checkpoint.list_checkpoints(run)


def test_an_attempt_that_a_paused_driver_begins_makes_nothing_void(
    run: str, first: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim(run, "trunk", "corpus", print) as held:
        own = begin_attempt(held.lease, 0, 20, "c", 1)
        with pytest.raises(LeaseLostError):
            begin_attempt(first, 0, 0, None, 1)
        monkeypatch.setattr(Lease, "require", lambda _: None)
        stale = begin_attempt(first, 0, 0, None, 1)
        assert stale.number > own.number
        assert find_successor(list_attempts(run), own.number, 25) is None


def test_a_paused_driver_removes_no_checkpoint(
    run: str, first: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_remote(run):
        pytest.skip("no store removes on a condition: docs/decisions/020-fenced-writes.md")
    require = Lease.require
    with ExitStack() as stack:

        def look_and_fall_asleep(lease: Lease) -> None:
            require(lease)
            if lease == first:
                monkeypatch.setattr(Lease, "require", require)
                stack.enter_context(claim(run, "trunk", "corpus", print))

        monkeypatch.setattr(Lease, "require", look_and_fall_asleep)
        with pytest.raises(LeaseLostError):
            checkpoint.prune(run, 1, (), CheckpointName(20, 0), first)
        assert len(checkpoint.list_checkpoints(run)) == 2


CREATE = """
import sys
from cluster.storage import create_text
sys.stdin.readline()
print(create_text(sys.argv[1], sys.argv[2]), flush=True)
"""


def test_of_two_processes_that_create_a_file_one_does(run: str) -> None:
    uri = join(run, "leases", "000001.json")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, uri, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(answers) == ["False", "True"]
    assert read_bytes(uri) == "ab"[answers.index("True")].encode()
    assert not create_text(uri, "c")


PAUSED = """
import sys
from cprec.runs.control.lease import claim
from cprec.runs.json_lines import open_trace
from tests.records import trace_row

with claim(sys.argv[1], "trunk", "corpus", print) as held:
    trace = open_trace(sys.argv[1], held.lease)
    trace.append(trace_row())
    trace.flush()
    print("mine", flush=True)
    while True:
        trace.append(trace_row())
        trace.flush()
"""


def test_a_stopped_process_that_wakes_up_writes_no_step(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped at any point of its writes."""
    monkeypatch.setattr(liveness, "is_alive", lambda _: None)
    for name in ("STALE_S", "POLL_S"):
        monkeypatch.setattr(liveness, name, getattr(liveness, name) / 10)
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED, run],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        process.send_signal(signal.SIGSTOP)
        with claim(run, "trunk", "corpus", print):
            before = contents(run)
            process.send_signal(signal.SIGCONT)
            _, err = process.communicate(timeout=60)
            assert "LeaseLostError: the run trunk was taken over by process" in err
            assert contents(run) == before
            assert exists(join(run, "trace.jsonl"))
            assert read_bytes_if_exists(join(run, "plan.json")) in (None, b"  ")

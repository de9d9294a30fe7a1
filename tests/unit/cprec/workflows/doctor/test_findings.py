"""Checks that fail, break or hang are findings like any other, and hide none of the others."""

import json
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from cluster.errors import PlatformFault, RunError
from cprec.workflows.doctor.findings import Check, Finding, Report, run_checks


def well() -> Iterator[Finding]:
    yield Finding("well", "ok", "12 [3]", "10 or more")


def denied() -> Iterator[Finding]:
    yield Finding("denied: first", "ok", "reached")
    raise PermissionError(13, "Permission denied", "s3://bucket/runs?token=abc123")


def broken() -> Iterator[Finding]:
    raise ZeroDivisionError("an invariant")
    yield


def run(*checks: Check) -> Report:
    return run_checks(checks, lambda line: None)


def test_what_passes_passes() -> None:
    report = run(Check("well", well, 60), Check("again", well, 60))
    assert report.status == "ok"
    assert [finding.status for finding in report.findings] == ["ok", "ok"]
    report.require_passed()
    assert report.verdict() == "all 2 findings are ok; jobs with this recipe can start"


def test_a_warning_is_no_failure() -> None:
    report = Report((Finding("slow", "warn", "1 MB/s"), Finding("well", "ok", "1")))
    assert report.status == "warn"
    report.require_passed()
    assert report.verdict().startswith("1 of 2 findings warn (slow); ")


def test_an_error_is_a_failure_and_the_next_check_runs() -> None:
    report = run(Check("denied", denied, 60), Check("well", well, 60))
    assert [(f.check, f.status) for f in report.findings] == [
        ("denied: first", "ok"),
        ("denied", "fail"),
        ("well", "ok"),
    ]
    assert "Permission denied" in report.findings[1].seen
    assert "abc123" not in report.to_json()
    with pytest.raises(RunError, match="1 of 3 findings are failures: denied"):
        report.require_passed()


def test_an_error_that_nobody_foresaw_is_a_fault_with_its_cause() -> None:
    report = run(Check("broken", broken, 60), Check("well", well, 60))
    assert [finding.status for finding in report.findings] == ["fail", "ok"]
    with pytest.raises(PlatformFault, match="broken") as raised:
        report.require_passed()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_check_that_hangs_ends_by_its_own_limit_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, ended = threading.Event(), threading.Event()
    join = threading.Thread.join

    def hanging() -> Iterator[Finding]:
        yield Finding("hanging: first", "ok", "reached")
        hangs.set()
        ended.wait(600)

    def join_once_it_hangs(thread: threading.Thread, timeout: float | None = None) -> None:
        """Begins with the limit when the check hangs, however long its thread took to start."""
        assert hangs.wait(60)
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", join_once_it_hangs)

    try:
        report = run(Check("hanging", hanging, 0.2), Check("well", well, 60))
    finally:
        ended.set()
    assert [(f.check, f.status) for f in report.findings] == [
        ("hanging: first", "ok"),
        ("hanging", "fail"),
        ("well", "ok"),
    ]
    assert "no end within 0.2 s" in report.findings[1].seen


def test_both_forms_hold_every_word() -> None:
    finding = Finding("disk", "warn", "1 GiB of [tmpfs]", "10 GiB", "make room")
    report = Report((finding,))
    console = Console(width=80)
    with console.capture() as shown:
        console.print(report.to_table())
    for words in ("disk", "warn", "1 GiB of [tmpfs]", "allowed: 10 GiB", "to do: make room"):
        assert words in shown.get()
    assert json.loads(report.to_json()) == {
        "status": "warn",
        "findings": [
            {
                "check": "disk",
                "status": "warn",
                "seen": "1 GiB of [tmpfs]",
                "allowed": "10 GiB",
                "todo": "make room",
            }
        ],
    }

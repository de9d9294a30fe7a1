"""Checks, what they find, and how that is shown.

A check runs in a thread with a time limit. One that fails, breaks or hangs becomes a finding like
any other, and the next check runs all the same.
"""

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from cluster.console import Say
from cluster.errors import PlatformFault, RunError, UserError
from cprec.config.secrets import redact

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["ok", "warn", "fail"]

_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What one check found about one thing.

    Attributes:
        check: What was looked at, such as `storage: rights`.
        status: `ok`; `warn`: a job runs, but slowly or unsafely; `fail`: a job would fail.
        seen: The value that was found, or the error.
        allowed: What would be right; empty where `seen` says it.
        todo: What to do about it; empty if nothing is to be done, or `seen` says it.
    """

    check: str
    status: Status
    seen: str
    allowed: str = ""
    todo: str = ""


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: Name of the check, with which the names of its findings begin.
        look: Looks, and yields findings as it goes.
        limit_s: Time that it may take (seconds).
        does: What it does, for a dry run.
    """

    name: str
    look: Callable[[], Iterable[Finding]]
    limit_s: float
    does: str = ""


@dataclass(frozen=True)
class Report:
    """All findings.

    Attributes:
        findings: The findings, in the order of the checks.
        faults: Exceptions that no check had foreseen.
    """

    findings: tuple[Finding, ...]
    faults: tuple[Exception, ...] = field(default=(), compare=False)

    @property
    def status(self) -> Status:
        """The worst status of a finding."""
        statuses = {finding.status for finding in self.findings}
        return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"

    def require_passed(self) -> None:
        """Returns if nothing failed; a warning is no failure.

        Raises:
            PlatformFault: A check broke.
            RunError: A check failed.
        """
        failed = [finding.check for finding in self.findings if finding.status == "fail"]
        if self.faults:
            raise PlatformFault(f"a check broke ({', '.join(failed)})") from self.faults[0]
        if failed:
            raise RunError(
                f"{len(failed)} of {len(self.findings)} findings are failures: "
                f"{', '.join(failed)}; the report above says what to do"
            )

    def verdict(self) -> str:
        """Returns the last line of a report in which nothing failed."""
        warned = [finding.check for finding in self.findings if finding.status == "warn"]
        seen = f"all {len(self.findings)} findings are ok"
        if warned:
            seen = f"{len(warned)} of {len(self.findings)} findings warn ({', '.join(warned)})"
        return f"{seen}; jobs with this recipe can start"

    def to_json(self) -> str:
        """Returns the report as one JSON object."""
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"status": self.status, "findings": findings}, indent=2)

    def to_table(self) -> "Table":
        """Returns the report as a table for the console."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in ("check", "", "seen, allowed, what to do"):
            table.add_column(name)
        for finding in self.findings:
            lines = [finding.seen]
            lines += [f"allowed: {finding.allowed}"] if finding.allowed else []
            lines += [f"to do: {finding.todo}"] if finding.todo else []
            style = _STYLES[finding.status]
            table.add_row(
                escape(finding.check), f"[{style}]{finding.status}[/]", escape("\n".join(lines))
            )
        return table


def run_checks(checks: Iterable[Check], say: Say) -> Report:
    """Runs checks one after the other, so that none disturbs what another one measures.

    Args:
        checks: The checks.
        say: Takes a line for each check that begins.
    """
    findings: list[Finding] = []
    faults: list[Exception] = []
    for check in checks:
        say(f"checking: {check.name}")
        findings += _run_check(check, faults)
    return Report(tuple(map(_without_secrets, findings)), tuple(faults))


def _run_check(check: Check, faults: list[Exception]) -> list[Finding]:
    """Runs a check; returns what it found until it ended, or until its time was over."""
    findings: list[Finding] = []

    def look() -> None:
        try:
            for finding in check.look():
                findings.append(finding)
        except (UserError, OSError) as error:
            findings.append(Finding(check.name, "fail", str(error)))
        except Exception as error:  # whatever nobody foresaw must not hide the other findings
            findings.append(Finding(check.name, "fail", f"{type(error).__name__}: {error}"))
            faults.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(check.limit_s)
    if not thread.is_alive():
        return findings
    return [
        *findings,
        Finding(
            check.name,
            "fail",
            f"no end within {check.limit_s:g} s",
            "an answer",
            "see whether it can be reached from here and is not overloaded",
        ),
    ]


def _without_secrets(finding: Finding) -> Finding:
    """Returns a finding without secrets, which the message of an error may quote."""
    return replace(finding, seen=redact(finding.seen), todo=redact(finding.todo))

"""A job that the console starts: its lines, its end, and one that writes at a time."""

import asyncio
from pathlib import Path

import pytest

from cluster.errors import RunError
from cprec.console import child_jobs
from cprec.console.child_jobs import MAX_COLUMNS, ChildJobs

SCRIPT = """
import sys, time
print("working on", *sys.argv[1:], flush=True)
print("password=hunter2-hunter2")
print("x" * 5000)
if "wait" in sys.argv: time.sleep(60)
sys.exit("no such domain" if "fail" in sys.argv else 0)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work.py").write_text(SCRIPT)
    monkeypatch.setattr(child_jobs, "JOBS_FOLDER", tmp_path)


async def _run_to_the_end(*arguments: str) -> tuple[str, list[str], list[str]]:
    said: list[str] = []
    jobs = ChildJobs(said.append)
    job = await jobs.start("work", arguments, "python jobs/work.py", "console (Ada)", True)
    while job.state == "running":
        await asyncio.sleep(0.02)
    assert jobs.find(job.number) is job
    return job.state, job.lines, said


def test_a_job_is_followed_to_its_end() -> None:
    state, lines, said = asyncio.run(_run_to_the_end("--data.domains=a b; rm"))
    assert state == "done"
    assert lines[0] == "working on --data.domains=a b; rm"
    assert "hunter2" not in lines[1]
    assert len(lines[2]) == MAX_COLUMNS
    assert said == ["console (Ada): python jobs/work.py", "python jobs/work.py: done"]


def test_a_job_that_fails_says_why() -> None:
    state, lines, _ = asyncio.run(_run_to_the_end("fail"))
    assert (state, lines[-1]) == ("failed", "no such domain")


async def _start_after_one_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = ChildJobs(lambda line: None)

    async def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", refuse)
        with pytest.raises(RunError, match=r"could not be started .* temporarily unavailable"):
            await jobs.start("work", [], "the first", "Ada", True)
    job = await jobs.start("work", [], "the second", "Bob", True)
    while job.state == "running":
        await asyncio.sleep(0.02)
    assert job.state == "done"


def test_a_job_that_the_machine_does_not_start_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.run(_start_after_one_that_did_not(monkeypatch))


async def _start_two() -> None:
    jobs = ChildJobs(lambda line: None)
    first = await jobs.start("work", ["wait"], "the first", "Ada", True)
    await jobs.start("work", ["--dry-run"], "a dry run", "Bob", False)
    with pytest.raises(RunError, match="wait until this has ended, which Ada began: the first"):
        await jobs.start("work", [], "the second", "Bob", True)
    await jobs.end_all()
    assert first.state == "failed"
    with pytest.raises(RunError, match="no job 7"):
        jobs.find(7)


def test_one_job_writes_at_a_time_and_none_is_left() -> None:
    asyncio.run(_start_two())

"""Jobs that the console starts as processes of their own, and what they print."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

from cluster.console import Say
from cluster.errors import REFUSED, RunError
from cprec.config.command import DEMO_RECIPE
from cprec.config.secrets import redact

JOBS_FOLDER = Path(DEMO_RECIPE).parent.parent

MAX_LINES = 2000
"""Lines of a job that are kept."""

MAX_COLUMNS = 2000
"""Characters that are kept of a line."""

MAX_KEPT = 20
"""Jobs whose lines are kept, the newest."""

ChildState = Literal["running", "done", "failed"]


async def start_script(
    job: str, arguments: Sequence[str], name: str, *, stdin: int, stderr: int, limit: int
) -> asyncio.subprocess.Process:
    """Starts the script of a job as a process whose output is read.

    Args:
        job: Name of the script.
        arguments: Its arguments.
        name: What is started, for people.
        stdin: As for `subprocess.Popen`.
        stderr: Likewise.
        limit: Bytes of a line of output, at most.

    Raises:
        RunError: The machine starts none: too many processes, say, or no memory.
    """
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            str(JOBS_FOLDER / f"{job}.py"),
            *arguments,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=limit,
        )
    except OSError as error:
        raise RunError(f"{name} could not be started on this machine: {error}") from None


@dataclass
class ChildJob:
    """A job that was started, and what it has printed.

    Attributes:
        number: Number of the job since the console started.
        command: The command, for people.
        by: Who started it.
        writes: Whether it changes anything; else it is a dry run.
        lines: What it printed.
        state: Whether it runs, or how it ended.
    """

    number: int
    command: str
    by: str
    writes: bool
    lines: list[str] = field(default_factory=list)
    state: ChildState = "running"


class ChildJobs:
    """Starts jobs, one that writes at a time."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._numbers = count(1)
        self._jobs: dict[int, ChildJob] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, number: int) -> ChildJob:
        """Returns a job.

        Raises:
            RunError: There is none of that number, or it was long ago.
        """
        if number not in self._jobs:
            raise RunError(f"no job {number} of this console")
        return self._jobs[number]

    async def start(
        self, job: str, arguments: Sequence[str], command: str, by: str, writes: bool
    ) -> ChildJob:
        """Starts a job.

        Args:
            job: Name of its script.
            arguments: Its arguments.
            command: The command, for people.
            by: Who starts it.
            writes: Whether it changes anything.

        Raises:
            RunError: A job that writes is running already, or the machine starts none.
        """
        running = next((j for j in self._jobs.values() if j.writes and j.state == "running"), None)
        if writes and running is not None:
            raise RunError(
                f"wait until this has ended, which {running.by} began: {running.command}"
            )
        child = ChildJob(next(self._numbers), command, by, writes)
        self._jobs[child.number] = child
        for number in [n for n, j in self._jobs.items() if j.state != "running"][:-MAX_KEPT]:
            del self._jobs[number]
        try:
            process = await start_script(
                job,
                arguments,
                command,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.STDOUT,
                limit=1 << 20,
            )
        except RunError:
            child.state = "failed"  # later jobs do not wait for it
            raise
        self._processes[child.number] = process
        if writes:
            self._say(f"{by}: {command}")
        task = asyncio.create_task(self._collect(child, process))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return child

    async def _collect(self, child: ChildJob, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with suppress(ValueError):  # a line beyond any measure
            async for line in process.stdout:
                text = redact(line.decode("utf-8", "replace").rstrip())[:MAX_COLUMNS]
                child.lines = [*child.lines, text][-MAX_LINES:]
        while await process.stdout.read(1 << 16):  # or the job would wait for a reader
            pass
        code = await process.wait()
        child.state = "done" if code in (0, REFUSED) else "failed"  # a refusal is an answer
        del self._processes[child.number]
        if child.writes:
            self._say(f"{child.command}: {child.state}")

    async def end_all(self) -> None:
        """Interrupts the jobs that run, and waits for them: each leaves what it does whole."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.terminate()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=30)

"""The process that ranks for the console: it has the models, so that the console stays small."""

import asyncio
import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.console import Say
from cluster.errors import RunError
from cprec.config.secrets import redact
from cprec.console.child_jobs import start_script

JOB = "try_models"

ANSWER_S = 600.0
"""Time that an answer may take (seconds): the first one loads models."""

IDLE_S = 600.0
"""Time without a question (seconds) after which the process is ended, and its memory free."""

MAX_LINE = 1 << 24
"""Bytes of an answer, at most."""

KEPT_LINES = 5
"""Lines that the process said last, for the message if it dies."""


class RankingChild:
    """Starts the process when somebody asks, and ends it when nobody does any more."""

    def __init__(self, arguments: Sequence[str], say: Say) -> None:
        """Describes the process. Starts nothing.

        Args:
            arguments: Arguments of its job: the recipe and keys.
            say: Takes a line when it starts and ends.
        """
        self._arguments, self._say = arguments, say
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked = 0

    async def ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """Asks one question; others wait for their turn.

        Returns:
            The answer, as `cprec.workflows.console.try_models` gives it.

        Raises:
            RunError: The question was wrong, or the process died or took too long.
        """
        async with self._turn:
            process = await self._start()
            self._asked += 1
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(f"{json.dumps(question)}\n".encode())
                await process.stdin.drain()
                line = await asyncio.wait_for(process.stdout.readline(), ANSWER_S)
            except (TimeoutError, ConnectionError, ValueError):
                line = b""
            except asyncio.CancelledError:  # its answer would be taken for the next one's
                await self._end()
                raise
            if not line.endswith(b"\n"):
                await self._end()
                said = "; ".join(self._last_lines) or "it said nothing"
                raise RunError(f"the process that ranks did not answer: {said}")
            self._watch_idleness()
        answer: dict[str, Any] = json.loads(line)
        if problem := answer.get("error"):
            raise RunError(str(problem))
        return answer

    async def _start(self) -> asyncio.subprocess.Process:
        """Returns the process, started if there is none."""
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._say("a process that ranks starts, for Try it")
        self._last_lines.clear()
        self._process = await start_script(
            JOB,
            self._arguments,
            "the process that ranks",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
        )
        self._run(self._collect(self._process))
        return self._process

    async def _collect(self, process: asyncio.subprocess.Process) -> None:
        """Keeps what the process said last; read on, or it would wait."""
        assert process.stderr is not None
        with suppress(ValueError):  # a line beyond any measure
            async for line in process.stderr:
                self._last_lines.append(redact(line.decode("utf-8", "replace").strip())[:500])

    def _watch_idleness(self) -> None:
        asked = self._asked

        async def end_if_idle() -> None:
            await asyncio.sleep(IDLE_S)
            async with self._turn:
                if self._asked == asked:
                    await self._end()
                    self._say("the process that ranks ended: nobody asked any more")

        self._run(end_if_idle())

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()  # it writes nothing
            await self._process.wait()

    async def end(self) -> None:
        """Ends the process, if there is one."""
        await self._end()
        for task in list(self._tasks):
            task.cancel()

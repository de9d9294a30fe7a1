"""Looks at something at intervals while somebody watches, and tells of the parts that changed."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress

from cluster.errors import CprecError
from cprec.config.secrets import redact
from cprec.console.views.encoding import encode

Look = Callable[[], Mapping[str, bytes]]

CPU_FRACTION = 0.005
"""Fraction of a core that looking may take: a longer look is followed by a longer pause."""

KEEPALIVE_S = 15.0
"""Seconds after which a watcher hears something even if nothing changed."""

PROBLEM = "problem"
"""The part that says why a look failed; null if it did not."""


class Watch:
    """One thing that any number of browsers watch; it is looked at once for all of them."""

    def __init__(self, look: Look, refresh_s: float) -> None:
        """Describes a watch.

        Args:
            look: Returns the parts by name; called in a thread, one call at a time.
            refresh_s: Seconds between two looks, at least.
        """
        self._look, self._refresh_s = look, refresh_s
        self._one_at_a_time = threading.Lock()
        self._parts: dict[str, tuple[int, bytes | None]] = {}
        self._number = 0
        self._changed = asyncio.Condition()
        self._hurry = asyncio.Event()
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def is_watched(self) -> bool:
        """Whether at least one browser watches."""
        return self._watchers > 0

    async def look_ahead(self) -> None:
        """Looks once while nobody watches yet, so that whoever comes need not wait for it."""
        parts, _ = await asyncio.to_thread(self._timed_look)
        self._take(parts)

    def hurry(self) -> None:
        """Looks again at once, because something was done."""
        self._hurry.set()

    async def follow(self) -> AsyncGenerator[list[tuple[str, bytes | None]], None]:
        """Yields all parts, then those that changed; a part that is gone is None.

        Yields nothing now and then, so that whoever has left is noticed.
        """
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._keep_looking())
        seen = 0
        try:
            while True:
                await self._wait_for_news(seen)
                news = [
                    (name, content)
                    for name, (number, content) in self._parts.items()
                    if number > seen and (content is not None or seen)
                ]
                seen = self._number
                yield news
        finally:
            self._watchers -= 1
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _wait_for_news(self, seen: int) -> None:
        """Waits until something is newer than what was seen, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEPALIVE_S), self._changed:
                await self._changed.wait_for(lambda: self._number > seen)

    async def _keep_looking(self) -> None:
        while True:
            self._hurry.clear()
            parts, cpu_s = await asyncio.to_thread(self._timed_look)
            self._take(parts)
            async with self._changed:
                self._changed.notify_all()
            with suppress(TimeoutError):
                pause_s = max(self._refresh_s, cpu_s / CPU_FRACTION)
                await asyncio.wait_for(self._hurry.wait(), pause_s)

    def _timed_look(self) -> tuple[Mapping[str, bytes], float]:
        """Returns the parts, and the CPU time that the look took (seconds)."""
        began = time.thread_time()
        try:
            with self._one_at_a_time:
                parts: Mapping[str, bytes] = {**self._look(), PROBLEM: b"null"}
        except Exception as error:  # whatever it is: the page says so, and the next look may do
            kind = "" if isinstance(error, CprecError) else f"{type(error).__name__}: "
            known = {name: part for name, (_, part) in self._parts.items() if part is not None}
            parts = {**known, PROBLEM: encode(redact(f"{kind}{error}"))}
        return parts, time.thread_time() - began

    def _take(self, parts: Mapping[str, bytes]) -> None:
        """Notes which parts changed, and which are gone."""
        number = self._number + 1
        for name, content in parts.items():
            if name not in self._parts or self._parts[name][1] != content:
                self._parts[name] = (number, content)
                self._number = number
        for name, (_, former) in list(self._parts.items()):
            if name not in parts and former is not None:
                self._parts[name] = (number, None)
                self._number = number

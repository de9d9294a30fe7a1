"""Threads that use Ray. If Ray is shut down beneath one, the process crashes or hangs.

This module does without Ray, because every job imports it before it reads its command line.
"""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

_ends: list[threading.Event] = []


def start_ray_thread(target: Callable[[], None]) -> threading.Event:
    """Starts a function that uses Ray in a daemon thread; returns an event that is set at its end.

    A thread itself cannot be asked: if Ctrl-C interrupts its `join`, Python 3.11 takes it for one
    that has ended.
    """
    ended = threading.Event()

    def run() -> None:
        try:
            target()
        finally:
            ended.set()

    _ends.append(ended)
    threading.Thread(target=run, daemon=True).start()
    return ended


def is_ray_in_use() -> bool:
    """Returns whether any of the functions is still running."""
    return not all(ended.is_set() for ended in _ends)


def exit_process(code: int) -> NoReturn:
    """Ends the process without the exit handlers, one of which shuts Ray down.

    The processes of a local session end with it, but the raylet's agents look for the GCS for a
    minute first, so they are killed here, with the workers. A cluster ends the driver's actors.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    _kill_grandchildren()
    os._exit(code)


def _kill_grandchildren() -> None:
    """Kills what children of this process have started; the kernel kills Ray's children with it.

    If the raylet died before this process does, Ray would end it with an exit code of its own.
    """
    import psutil

    with suppress(psutil.Error):
        own = psutil.Process()
        children = {child.pid for child in own.children()}
        started = [each for each in own.children(recursive=True) if each.pid not in children]
        for each in started:
            with suppress(psutil.Error):
                each.kill()

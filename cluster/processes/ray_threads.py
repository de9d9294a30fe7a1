"""Threads that use Ray. If Ray is shut down beneath one, the process crashes or hangs.

This module does without Ray, because every job imports it before it reads its command line.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

_threads: list[threading.Thread] = []


def start_ray_thread(target: Callable[[], None]) -> threading.Thread:
    """Starts a function that uses Ray in a daemon thread, and returns the thread."""
    thread = threading.Thread(target=target, daemon=True)
    _threads.append(thread)
    thread.start()
    return thread


def is_ray_in_use() -> bool:
    """Returns whether any of the threads is still running."""
    return any(thread.is_alive() for thread in _threads)


def exit_process(code: int) -> NoReturn:
    """Ends the process without the exit handlers, one of which shuts Ray down.

    The processes of a local session end with it, and a cluster ends the driver's actors.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

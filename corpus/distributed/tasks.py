"""Runs functions as Ray tasks, and raises their errors as one process would."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import ray
from ray.data import DataContext
from ray.exceptions import RayTaskError

from cluster import ray_session as sessions
from cluster.errors import CprecError

SHUFFLE_BATCH_BYTES = 1 << 28
"""Bytes that a task of Ray Data shuffles at a time: about the samples of one range of users.

Ray Data's default is a GiB, which is more than any other task of a build holds.
"""

Ref = Any
"""An ObjectRef: the result of a task, finished or not, in Ray's object store."""


@contextmanager
def session() -> Iterator[None]:
    """Provides a Ray session for a `with` block: the connected one, else a new one on all cores.

    Ray Data prints neither progress bars nor plans in it, because the build reports by itself.
    """
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "shuffle_input_batch_bytes": SHUFFLE_BATCH_BYTES,
    }
    with sessions.ray_session("auto", os.cpu_count() or 1):
        context = DataContext.get_current()
        previous = {name: getattr(context, name) for name in settings}
        try:
            for name, value in settings.items():
                setattr(context, name, value)
            yield
        finally:
            for name, value in previous.items():
                setattr(context, name, value)


def submit(function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
    """Starts a task.

    Args:
        function: The function to run.
        arguments: Its arguments; the function gets the value of one that is a ref.
        num_returns: Results of the function.

    Returns:
        A ref of the result, or a list with a ref of each result if there are several.
    """
    return _remote_function(function).options(num_returns=num_returns).remote(*arguments)


def submit_generator(function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterable[Ref]:
    """Starts a task that yields its results, and returns their refs.

    Each result is put into the object store when it is yielded, so the task holds one at a time.
    """
    refs: Iterable[Ref] = (
        _remote_function(function).options(num_returns="streaming").remote(*arguments)
    )
    return refs


def get_results(refs: Sequence[Ref]) -> list[Any]:
    """Returns the results of some refs, which should be small.

    Raises:
        CprecError: A task raised it; it is raised here as it was, without Ray's own report.
    """
    try:
        return list(ray.get(list(refs)))
    except RayTaskError as error:
        if isinstance(error.cause, CprecError):
            raise error.cause from None
        raise


def map_on_ray(function: Callable[[Any], Any], values: Iterable[Any], /) -> Iterable[Any]:
    """Returns the function's results, in the order of the values; each is computed by a task."""
    return get_results([submit(_call, function, value) for value in values])


def _call(function: Callable[[Any], Any], value: Any) -> Any:
    """Calls a function that cannot be a remote function itself, such as a `partial`."""
    return function(value)


@lru_cache
def _remote_function(function: Callable[..., Any]) -> Any:
    """Returns the remote function of a function, which is made once."""
    return ray.remote(function)

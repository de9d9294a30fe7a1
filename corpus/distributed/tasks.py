"""Functions as Ray tasks: what they raise is raised here, as it is in one process."""

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
"""Bytes that a task of Ray Data shuffles at a time: about the samples of a range. By itself it would take a GiB, more than any task of ours holds."""

Ref = Any
"""A result that is made, or in the making, somewhere: an ObjectRef. In this process it takes no more room than its name."""


@contextmanager
def session() -> Iterator[None]:
    """The session that there is, else one of its own. Ray Data without its bars and its plan; the build says what it does itself."""
    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "shuffle_input_batch_bytes": SHUFFLE_BATCH_BYTES,
    }
    with sessions.ray_session("auto", os.cpu_count() or 1):
        context = DataContext.get_current()
        before = {name: getattr(context, name) for name in wanted}
        try:
            for name, value in wanted.items():
                setattr(context, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(context, name, value)


def submit(function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
    """Start a task. Arguments that are refs come to it as what they stand for. Returns a ref, or as many as there are results."""
    return _remote_function(function).options(num_returns=num_returns).remote(*arguments)


def submit_generator(function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterable[Ref]:
    """Start a task that yields results one by one, each of which lies in the object store as soon as it is there. Gives their refs."""
    refs: Iterable[Ref] = (
        _remote_function(function).options(num_returns="streaming").remote(*arguments)
    )
    return refs


def get_results(refs: Sequence[Ref]) -> list[Any]:
    """Results, which have to be small. Raises what a task raised, so that its message is the user's and not Ray's."""
    try:
        return list(ray.get(list(refs)))
    except RayTaskError as error:
        if isinstance(error.cause, CprecError):
            raise error.cause from None
        raise


def map_on_ray(function: Callable[[Any], Any], values: Iterable[Any], /) -> Iterable[Any]:
    """The function's results, in the order of the values; a task each."""
    return get_results([submit(_call, function, value) for value in values])


def _call(function: Callable[[Any], Any], value: Any) -> Any:
    return function(value)


@lru_cache
def _remote_function(function: Callable[..., Any]) -> Any:
    return ray.remote(function)

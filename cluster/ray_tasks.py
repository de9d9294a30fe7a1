"""Waits for Ray tasks, and shows meanwhile how far they are."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import ray

from cluster.errors import CprecError
from cluster.progress import Advance, unseen

REPORTS = 50
"""Reports of one task. Always as many, so that a task that Ray repeats says the same again."""

LOOK_S = 0.2
"""Seconds between two looks at what a task has done."""


@dataclass(frozen=True)
class TaskResult:
    """The last thing that a task with progress yields; before it, counts."""

    value: Any


def get_results(references: Sequence[Any], advance: Advance = unseen) -> list[Any]:
    """Waits for Ray tasks and returns their results, in order.

    Args:
        references: What the tasks return.
        advance: Is called with 1 for each task that has ended.

    Raises:
        CprecError: A task raised it; without the worker's traceback, which tells the user nothing.
        RayTaskError: A task raised another error.
    """
    waiting = list(references)
    while waiting:
        ready, waiting = ray.wait(waiting)
        _get(ready[0])
        advance(1)
    return [_get(reference) for reference in references]


def start_with_progress(
    function: Callable[..., Any], *arguments: Any, total: int, **options: Any
) -> Any:
    """Starts a Ray task whose progress can be watched (`get_streamed`).

    Args:
        function: Takes the arguments, and an `Advance` as the last one.
        arguments: Its arguments.
        total: The sum of what it will advance by.
        options: Options of the task, such as num_cpus.
    """
    task = ray.remote(_report).options(name=function.__name__, num_returns="streaming", **options)
    return task.remote(function, arguments, total)


def get_streamed(streams: Sequence[Any], advance: Advance = unseen) -> list[Any]:
    """Waits for tasks of `start_with_progress` and returns their results, in order.

    Args:
        streams: What `start_with_progress` returned.
        advance: Is called with what they advance by.

    Raises:
        CprecError, RayTaskError: As `get_results` does.
    """
    results: dict[int, Any] = {}
    numbers = {stream: number for number, stream in enumerate(streams)}
    waiting: list[Any] = list(streams)
    while waiting:
        ready: list[Any] = ray.wait(waiting, fetch_local=False)[0]
        item = _get(next(ready[0]))
        if isinstance(item, TaskResult):
            results[numbers[ready[0]]] = item.value
            waiting.remove(ready[0])
        else:
            advance(item)
    return [results[number] for number in range(len(streams))]


def _get(reference: Any) -> Any:
    """Gets what Ray holds; raises the user's error without the worker's traceback."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CprecError):
            raise error.cause from None
        raise


def _report(
    function: Callable[..., Any], arguments: Sequence[Any], total: int
) -> Iterator[int | TaskResult]:
    """Computes in a thread, and yields REPORTS counts that add up to the total, then the result."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count

    bounds = [total * (number + 1) // REPORTS for number in range(REPORTS)]
    told = 0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function, *arguments, advance)
        while bounds and not future.done():
            if done < bounds[0]:
                wait([future], timeout=LOOK_S)
            else:
                yield bounds[0] - told
                told = bounds.pop(0)
        result = future.result()
    for bound in bounds:
        yield bound - told
        told = bound
    yield TaskResult(result)

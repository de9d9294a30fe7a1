"""What a worker tells the controller when it fails."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from cluster.errors import UserError

MAX_CHARACTERS = 300
"""Characters of an error that are reported."""

REPORT_S = 10.0
"""Seconds that a worker waits for the controller to take its report."""


def report_failure(controller: Any, error: Exception) -> None:
    """Tells the controller of an error that a restart would meet again."""
    # An error from an actor has a class of Ray's that cannot be sent on well; its cause can.
    ray.get(controller.record_failure.remote(getattr(error, "cause", error)))


@contextmanager
def report_fault(controller: Any, attempt: int, rank: int) -> Iterator[None]:
    """Tells the controller of any other error that ends a `with` block.

    When a worker hangs, the others end by the time limit of their collective. That they say so, and
    it does not, is what names it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:MAX_CHARACTERS]
        with suppress(ray.exceptions.RayError):
            ray.get(controller.record_fault.remote(attempt, rank, problem), timeout=REPORT_S)
        raise

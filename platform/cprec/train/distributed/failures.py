"""How failures travel: what workers tell the controller, and which errors its callers can read."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray

from cluster.errors import CprecError, PlatformFault, UserError

T = TypeVar("T")

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


def raise_portable_errors(cls: type[T]) -> type[T]:
    """Lets the public methods of a class raise a PlatformFault for what cannot be read elsewhere.

    Ray pickles errors, and many of a library cannot be read back, such as those of json, whose
    constructor takes other arguments. The caller would see a fault of Ray, and not what happened.
    """
    for name, method in list(vars(cls).items()):
        if callable(method) and not name.startswith("_"):
            setattr(cls, name, _with_portable_errors(method))
    return cls


def _with_portable_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (CprecError, OSError):  # these can be read back
            raise
        except Exception as error:
            raise PlatformFault(f"the controller: {type(error).__name__}: {error}") from error

    return call

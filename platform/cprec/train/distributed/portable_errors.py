"""Errors of an actor that every other process can read."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.errors import CprecError, PlatformFault

T = TypeVar("T")


def raise_portable_errors(cls: type[T]) -> type[T]:
    """Lets the public methods of a class raise a PlatformFault for what is no CprecError.

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
        except CprecError:
            raise
        except Exception as error:
            raise PlatformFault(f"the controller: {type(error).__name__}: {error}") from error

    return call

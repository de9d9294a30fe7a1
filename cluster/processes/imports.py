"""Imports of large libraries, at less cost."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Imports what is imported in a `with` block without the garbage collector.

    It would look again and again through a million objects, all of which stay. That is a tenth of
    the time that torch, transformers and DeepSpeed take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

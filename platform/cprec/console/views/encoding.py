"""Turns views into JSON."""

from typing import Any

from pydantic_core import to_json


def encode(view: Any) -> bytes:
    """Returns a view as JSON; a value that is not finite becomes null, as browsers want it."""
    return to_json(view, inf_nan_mode="null")

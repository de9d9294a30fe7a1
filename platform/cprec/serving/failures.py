"""Finds out why a replica could not load its model, from the text that Ray Serve keeps of it. Pure.

Serve hands on a traceback as text, in which an error of this project is `cluster.errors.NAME: ...`.
"""

import re

from cluster import errors
from cluster.errors import CprecError, PlatformFault

_RAISED = re.compile(r"^cluster\.errors\.(\w+): (.+)$", re.MULTILINE)


def find_load_error(label: str, message: str) -> CprecError:
    """Returns the error that a replica raised; a fault with the whole text if it was not ours.

    Args:
        label: The model.
        message: What Serve says about the deployment.
    """
    if raised := _RAISED.findall(message):
        name, text = raised[-1]
        kind = getattr(errors, name, PlatformFault)
        if issubclass(kind, CprecError):
            return kind(f"{label} was not loaded: {text}")
    return PlatformFault(f"{label} was not loaded: {message}")

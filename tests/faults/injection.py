"""Faults that are put into the workers of a run (`injected/sitecustomize.py`)."""

import json
import os
from pathlib import Path
from typing import Any

INJECTED = str(Path(__file__).parent / "injected")


def fault(kind: str, step: int, marker: Path | None) -> dict[str, Any]:
    """Returns a fault of rank 1.

    Args:
        kind: What happens; see `injected/sitecustomize.py`.
        step: First step at which it happens.
        marker: Made when it happens, so that it happens once; None: from that step on, always. What
            waits, waits for it.
    """
    return {
        "kind": kind,
        "rank": 1,
        "step": step,
        "marker": None if marker is None else str(marker),
    }


def environment(*faults: dict[str, Any]) -> dict[str, str]:
    """Returns the variables of a driver whose workers have these faults."""
    path = os.pathsep.join(filter(None, [INJECTED, os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "CPREC_TEST_FAULTS": json.dumps(faults)}

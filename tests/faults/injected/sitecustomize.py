"""Makes one worker of a run fail, in every Python process that finds this file first.

The environment variable CPREC_TEST_FAULTS holds a list of faults as JSON, each
{"kind": "die" | "hang" | "slow" | "wait" | "await notice" | "die while rank 0 saves",
"rank": int, "step": int, "marker": path}. A fault happens once, unless its marker is null: then it
happens in every step from that one on, in every group of workers. "wait" waits until there is a
marker, "await notice" until the worker was told that a node is taken away.
"""

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FAULTS = json.loads(os.environ.get("CPREC_TEST_FAULTS", "[]"))
WORKER = "cprec.train.distributed.worker"


def due(kind: str, rank: int, step: int) -> bool:
    """Returns whether a fault happens now, and leaves its marker."""
    for fault in FAULTS:
        marker = fault["marker"]
        if (fault["kind"], fault["rank"]) != (kind, rank) or step < fault["step"]:
            continue
        if marker is None:
            return True
        if not Path(marker).exists():
            Path(marker).touch()
            return True
    return False


def waits(rank: int, step: int) -> bool:
    """Returns whether a step has to wait for a marker."""
    return any(
        (fault["kind"], fault["rank"]) == ("wait", rank)
        and step >= fault["step"]
        and not Path(fault["marker"]).exists()
        for fault in FAULTS
    )


def patch(worker: Any) -> None:
    """Puts the faults into the module of a worker."""
    # After the worker: this file is read by every process.
    import torch.distributed as dist
    from ray.train.v2._internal.execution.context import get_train_context

    engine, commit = worker.Engine, worker.checkpoint.commit
    step, gather_state = engine.step, engine.gather_state

    def failing_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        rank = dist.get_rank()
        if due("die", rank, self.steps):
            os.kill(os.getpid(), signal.SIGKILL)
        if due("slow", rank, self.steps):
            time.sleep(1)
        while waits(rank, self.steps):
            time.sleep(0.1)
        if due("await notice", rank, self.steps):
            while get_train_context().preemption_context.preemption_info is None:
                time.sleep(0.1)
        if due("hang", rank, self.steps):
            time.sleep(3600)
        return step(self, *args, **kwargs)

    def gather_and_die(self: Any) -> Any:
        state = gather_state(self)
        if due("die while rank 0 saves", dist.get_rank(), self.steps):
            os._exit(1)
        return state

    def slow_commit(*args: Any, **kwargs: Any) -> Any:
        if any(fault["kind"] == "die while rank 0 saves" for fault in FAULTS):
            time.sleep(2)
        return commit(*args, **kwargs)

    engine.step, engine.gather_state = failing_step, gather_and_die
    worker.checkpoint.commit = slow_commit


class PatchedLoader(importlib.abc.Loader):
    """Loads the module as it is, and puts the faults into it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        patch(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module of a worker where it is, with another loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != WORKER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = PatchedLoader(spec.loader)
        return spec


if FAULTS:
    sys.meta_path.insert(0, Finder())

"""Where a worker group starts: rank 0 finds it on storage, and tells the other ranks."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist

from cluster.errors import PlatformFault, UserError
from cprec.runs import checkpoint
from cprec.runs.control.attempts import begin_attempt
from cprec.runs.control.lease import Lease
from cprec.runs.restart import find_last_checkpoint
from cprec.schedule.ledger import Ledger
from cprec.train.distributed.controller_state import WorkerGroup
from cprec.train.distributed.failures import report_failure


@dataclass(frozen=True)
class StartPoint:
    """Where all workers begin, as rank 0 found it on storage.

    Attributes:
        group: This start of the worker group.
        ledger: Ledger of the checkpoint that the group resumes from; None: it starts at 0.
    """

    group: WorkerGroup
    ledger: Ledger | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        ledger = None if self.ledger is None else self.ledger.to_json()
        return {"group": asdict(self.group), "ledger": ledger}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "StartPoint | None":
        """Reads what rank 0 has found: nothing is to be done where it is empty.

        Raises:
            PlatformFault: Rank 0 failed.
        """
        if "error" in values:
            raise PlatformFault(f"rank 0 found no start: {values['error']}")
        if not values:
            return None
        ledger = values["ledger"]
        return cls(
            WorkerGroup(**values["group"]), None if ledger is None else Ledger.from_json(ledger)
        )


def agree_on_start(lease: Lease, controller: Any, rank: int, world_size: int) -> StartPoint | None:
    """Lets rank 0 find where the group starts, and tells the other ranks.

    Returns:
        Where to start; None if the run has failed, so that there is nothing to do.

    Raises:
        Exception: Rank 0 failed; on the other ranks it is a PlatformFault with its message.
    """
    if rank:
        return StartPoint.from_json(json.loads(broadcast_text(None)))
    try:
        start = None
        if ray.get(controller.failure.remote()) is None:
            start = _find_start(lease, controller, world_size)
    except UserError as error:
        report_failure(controller, error)
    except Exception as error:  # whatever it is: the other ranks must not wait for ever
        broadcast_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    broadcast_text(json.dumps({} if start is None else start.to_json()))
    return start


def _find_start(lease: Lease, controller: Any, world_size: int) -> StartPoint:
    """Finds the newest valid checkpoint, and begins an attempt at the controller."""
    name, problems = find_last_checkpoint(lease.run_uri)
    saved = checkpoint.list_checkpoints(lease.run_uri)
    uri = checkpoint.checkpoint_uri(lease.run_uri, name) if name else None
    ledger = checkpoint.read_ledger(uri) if uri else None
    samples = ledger.samples if ledger else 0
    lowest = max((other.attempt + 1 for other in saved), default=0)
    attempt = begin_attempt(lease, lowest, samples, uri, world_size)
    group = WorkerGroup(attempt.number, world_size, samples, uri)
    ray.get(controller.begin_attempt.remote(group, problems))
    return StartPoint(group, ledger)


def broadcast_text(text: str | None) -> str:
    """Sends a text from rank 0 to all ranks, as bytes. Collective: every worker calls it.

    `broadcast_object_list` would unpickle what comes from a peer that nobody has authenticated.

    Args:
        text: The text on rank 0; None elsewhere.
    """
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    content = b"" if text is None else text.encode()
    size = torch.tensor([len(content)], device=device)
    dist.broadcast(size, src=0)
    values = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if text is not None:
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
    dist.broadcast(values, src=0)
    return bytes(values.cpu().numpy()).decode()

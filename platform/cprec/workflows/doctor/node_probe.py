"""What the doctor runs on each node of a cluster."""

import socket
import time
from datetime import timedelta

from cprec.workflows.doctor.machines import Machine, describe_this_machine

REDUCED_BYTES = {"gloo": 16 << 20, "nccl": 256 << 20}
"""Bytes of the tensor that is reduced, by backend."""

ROUNDS = 5
JOIN_TIMEOUT_S = 60


class NodeProbe:
    """Answers for the node that it runs on, as an actor."""

    def machine(self) -> Machine:
        """Returns the facts of the node."""
        return describe_this_machine()

    def time(self) -> float:
        """Returns the clock of the node (Unix seconds)."""
        return time.time()

    def free_port(self) -> int:
        """Returns a port that nothing listens on."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def reduce(self, backend: str, store: str, rank: int, world_size: int) -> float:
        """Reduces a tensor over all probes, as an optimizer step does with gradients.

        Args:
            backend: `nccl` or `gloo`.
            store: host:port where the probe of rank 0 lets the others meet.
            rank: Number of this probe.
            world_size: Number of probes.

        Returns:
            Bytes per second and direction that each of them sent: 2 (n - 1) / n of the tensor.
        """
        import torch
        from torch import distributed

        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        distributed.init_process_group(
            backend,
            init_method=f"tcp://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=JOIN_TIMEOUT_S),
        )
        try:
            size = REDUCED_BYTES[backend]
            tensor = torch.ones(size // 4, device=device)
            distributed.all_reduce(tensor)  # connects
            if float(tensor[0]) != world_size:
                raise RuntimeError(f"the sum over {world_size} workers is {float(tensor[0])}")
            began = time.perf_counter()
            for _ in range(ROUNDS):
                distributed.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = (time.perf_counter() - began) / ROUNDS
        finally:
            distributed.destroy_process_group()
        return 2 * (world_size - 1) / world_size * size / seconds

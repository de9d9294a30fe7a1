"""Checks Ray: its token, its nodes, what they have, and how fast they reach each other."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ray_session import ray_session, resolve_address
from cprec.config.recipe import Recipe
from cprec.workflows.doctor.findings import Finding
from cprec.workflows.doctor.machines import (
    describe_this_machine,
    judge_clocks,
    judge_disks,
    judge_versions,
)
from cprec.workflows.doctor.node_probe import JOIN_TIMEOUT_S, NodeProbe

ANSWER_S = 10
"""Seconds that the head may take to answer."""
PROBE_S = 90
"""Seconds that a probe may take to start on a node."""
CLOCK_TRIES = 5

SLOW_BYTES_PER_S = {"gloo": 50e6, "nccl": 1e9}
"""Speeds of an all-reduce below which it would dominate a step, by backend.

The gradients of LoRA on a 7B are 80 MB at rank 8, those of a whole 7B 13 GB.
"""


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Attributes:
        id: Ray's id of it.
        name: Its host name and address, for people.
        address: Its IP address.
        cpus: Its logical CPUs.
        gpus: Its GPUs.
    """

    id: str
    name: str
    address: str
    cpus: float
    gpus: float

    @classmethod
    def list(cls) -> "list[Node]":
        """Returns the nodes of the connected cluster that are alive."""
        return [
            cls(
                node["NodeID"],
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0),
                node["Resources"].get("GPU", 0),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]


def check_ray(recipe: Recipe) -> Iterator[Finding]:
    """Connects as a job does, or starts the local session of one, and looks at every node.

    Args:
        recipe: `cluster`, `workers` and what each of them needs.
    """
    address = _head_address(recipe.cluster.address)
    if address is not None:  # a head that does not answer would keep ray.init, and end the process
        refusal = ask_without_token(address)
        if refusal is None:
            yield _no_answer(address)
            return
    with ray_session(recipe.cluster.address, recipe.logical_cpus):
        is_local = resolve_address(recipe.cluster.address) == "local"
        head = ray.get_runtime_context().gcs_address
        yield _judge_token(head, is_local)
        nodes = Node.list()
        yield _judge_resources(recipe, nodes, is_local)
        yield from _probe_nodes(recipe, nodes, is_local)


def ask_without_token(address: str) -> bool | None:
    """Asks the head of a cluster whether it is alive, without a token.

    Args:
        address: host:port of the GCS.

    Returns:
        Whether it refused to answer; None if nothing came back.
    """
    with grpc.insecure_channel(address) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        request = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]
        try:
            stub.CheckAlive(request, timeout=ANSWER_S)
        except grpc.RpcError as error:
            return True if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return False


def _head_address(address: str) -> str | None:
    """Returns host:port of the head that a job would connect to; None if it is not known so."""
    resolved = resolve_address(address)
    if resolved == "auto":
        resolved = os.environ.get("RAY_ADDRESS", "")
    host, _, port = resolved.rpartition(":")
    return resolved if port.isdigit() and host and "/" not in resolved else None


def _no_answer(address: str) -> Finding:
    return Finding(
        "ray: head",
        "fail",
        f"{address}: no answer of a GCS within {ANSWER_S} s",
        "an answer",
        "see cluster.address or RAY_ADDRESS, the head, and the rules for its port "
        "(docs/operations/network.md)",
    )


def _judge_token(head: str, is_local: bool) -> Finding:
    """Looks whether the head answers somebody who has no token."""
    name, allowed = "ray: token", "a stranger is refused"
    if ask_without_token(head):
        return Finding(name, "ok", f"{head} refuses who has no token")
    return Finding(
        name,
        "warn" if is_local else "fail",
        f"{head} answers without a token: whoever reaches it can run code on every node",
        allowed,
        "start all nodes with RAY_AUTH_MODE=token (docs/operations/authentication.md)",
    )


def _judge_resources(recipe: Recipe, nodes: Sequence[Node], is_local: bool) -> Finding:
    """Compares what the nodes have with what the workers of a run need."""
    train = recipe.train
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    workers = recipe.workers if is_local else train.min_workers or recipe.workers
    wanted_cpus, wanted_gpus = recipe.resources_for(workers)
    seen = f"{len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs"
    allowed = f"{wanted_cpus:g} CPUs and {wanted_gpus:g} GPUs for {workers} workers"
    if gpus < wanted_gpus or cpus < wanted_cpus:
        return Finding(
            "ray: nodes",
            "fail" if is_local else "warn",
            seen,
            allowed,
            "lower workers, or train.gpus_per_worker"
            if is_local
            else "a run waits for nodes: start them, unless an autoscaler does, or lower workers",
        )
    cores = os.cpu_count() or 1
    if is_local and cpus > cores:
        todo = "nothing, if slow is good enough; else lower workers or train.stream_cpus"
        seen = f"{cpus:g} logical CPUs, on {cores} cores"
        return Finding("ray: nodes", "warn", seen, f"{cores} or fewer", todo)
    return Finding("ray: nodes", "ok", seen, allowed)


def _probe_nodes(recipe: Recipe, nodes: Sequence[Node], is_local: bool) -> Iterator[Finding]:
    """Runs a probe on every node, the head included."""
    probes = {node: _start_probe(node) for node in nodes}
    asked = {probe.machine.remote(): node for node, probe in probes.items()}
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_S)
    if silent:
        yield Finding(
            "ray: probes",
            "fail",
            f"no answer of {', '.join(asked[reference].name for reference in silent)} "
            f"within {PROBE_S} s",
            "every node runs a process",
            "see the raylet's log on the node, and its memory and disk",
        )
    machines = {asked[reference]: ray.get(reference) for reference in ready}
    if not machines:
        return
    yield judge_versions(describe_this_machine(), list(machines.values()))
    if not is_local:  # this machine has been looked at
        yield from judge_disks("ray", list(machines.values()))
    yield judge_clocks({node.name: _measure_skew(probes[node]) for node in machines})
    backend = "nccl" if recipe.train.gpus_per_worker else "gloo"
    yield _check_all_reduce(list(machines), backend)


def _start_probe(node: Node, gpus: int = 0) -> Any:
    """Starts a probe on a node, which takes none of its CPUs."""
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    actor = ray.remote(num_cpus=0, num_gpus=gpus)(NodeProbe)
    return actor.options(scheduling_strategy=there).remote()


def _measure_skew(probe: Any) -> float:
    """Returns how far the clock of a node is ahead (seconds), by its quickest answer."""
    answers: list[tuple[float, float]] = []
    for _ in range(CLOCK_TRIES):
        began = time.time()
        remote: float = ray.get(probe.time.remote(), timeout=PROBE_S)
        ended = time.time()
        answers.append((ended - began, remote - (began + ended) / 2))
    return min(answers)[1]


def _check_all_reduce(nodes: Sequence[Node], backend: str) -> Finding:
    """Reduces a tensor over one worker of each node that trains; over two, if there is but one."""
    name = f"ray: all-reduce ({backend})"
    gpus = 1 if backend == "nccl" else 0
    training = [node for node in nodes if (node.gpus if gpus else node.cpus)]
    if len(training) == 1 and (not gpus or training[0].gpus > 1):
        training *= 2
    if len(training) < 2:
        return Finding(name, "ok", "not tried: fewer than two workers fit now")
    probes = [_start_probe(node, gpus) for node in training]
    try:
        port = ray.get(probes[0].free_port.remote(), timeout=PROBE_S)
        store = f"{training[0].address}:{port}"
        speeds = ray.get(
            [
                probe.reduce.remote(backend, store, rank, len(probes))
                for rank, probe in enumerate(probes)
            ],
            timeout=PROBE_S + JOIN_TIMEOUT_S,
        )
    except ray.exceptions.RayError as error:
        problem = str(error.cause) if isinstance(error, ray.exceptions.RayTaskError) else str(error)
        return Finding(
            name,
            "fail",
            f"{type(error).__name__}: {problem.strip() or 'no end'}",
            "workers reach each other on every port, and GPUs are free",
            "see docs/operations/network.md, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, and "
            "whether another run has the GPUs",
        )
    finally:
        for probe in probes:
            ray.kill(probe)
    slowest, places = min(speeds), len(set(training))
    is_slow = slowest < SLOW_BYTES_PER_S[backend]
    where = f"{len(probes)} workers on {places} node{'s' * (places > 1)}"
    return Finding(
        name,
        "warn" if is_slow else "ok",
        f"{slowest / 1e9:.2f} GB/s over {where}",
        f"{SLOW_BYTES_PER_S[backend] / 1e9:g} GB/s or more",
        "see that EFA or InfiniBand is used (NCCL_DEBUG=INFO)" if is_slow and gpus else "",
    )

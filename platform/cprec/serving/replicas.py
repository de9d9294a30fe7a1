"""Replicas of a model on Ray Serve. The only module of this folder that knows Ray.

Serve starts the replicas, batches what comes to each, finds those that died and starts others. Its
HTTP proxies are not used: the server stands in the job's own process (docs/decisions/028).
"""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve._private import replica as serve_replica
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from cluster.console import Say, print_line
from cluster.errors import PlatformFault
from cluster.ray_session import LOOPBACK
from cprec.serving.dispatcher import ReplicaLost
from cprec.serving.failures import find_load_error
from cprec.serving.loaded_model import ServedModel
from cprec.serving.messages import RankRequest, RankResponse, Refusal
from cprec.serving.metrics import ServerMetrics

DEPLOYMENT = "ranker"
POLL_S = 0.2
"""Seconds between two looks at whether replicas have loaded their model."""
HEALTH_CHECK_S = 2.0
"""Seconds between two checks of a replica: a dead one is replaced that soon."""
BATCHES_UNDER_WAY = 4
"""Batches that a replica is sent before it has answered the first, so that it never waits."""

_NUMBERS = itertools.count(1)
_PREFIX = f"cprec-{uuid.uuid4().hex[:8]}-"
"""Tells apart the applications of several servers on one cluster."""
_Answer = tuple[RankResponse | Refusal, int]
"""The answer to a request, and the number of requests that were ranked together."""


class _Replica:
    """An actor of Ray Serve that holds the model."""

    def __init__(self, served: ServedModel) -> None:
        _listen_on_loopback()
        self._loaded = served.load(print_line)
        batching: Any = self._rank_batch  # its type does not tell of these two
        batching.set_max_batch_size(served.recipe.evaluate.batch)
        batching.set_batch_wait_timeout_s(served.recipe.serve.batch_wait_ms / 1000)

    async def __call__(self, request: RankRequest) -> _Answer:
        answer: _Answer = await self._rank_batch(request)
        return answer

    @serve.batch
    async def _rank_batch(self, requests: list[RankRequest]) -> list[_Answer]:
        # In a thread: the next batch is gathered, and health checks are answered, meanwhile.
        answers = await asyncio.to_thread(self._loaded.rank, requests)
        return [(answer, len(requests)) for answer in answers]


def _listen_on_loopback() -> None:
    """Lets this replica open Serve's port for other deployments on the loopback interface only.

    Serve opens it on all interfaces, has no option for that, and calls nobody there by default.
    """
    module: Any = serve_replica
    add_port = module.add_port_to_grpc_server
    module.add_port_to_grpc_server = lambda server, address: add_port(
        server, address.replace("[::]", LOOPBACK)
    )


class ServeReplicas:
    """Replicas of one model: an application of Ray Serve."""

    def __init__(self, served: ServedModel, metrics: ServerMetrics, say: Say) -> None:
        """Takes what they are to load; `start` starts them.

        Args:
            served: The model.
            metrics: Takes the sizes of batches.
            say: Takes a line whenever another number of them runs.
        """
        self._metrics = metrics
        self._say = say
        self.label = served.model.label
        self._served = served
        self._name = f"{_PREFIX}{next(_NUMBERS)}"
        self._handle: DeploymentHandle[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the replicas, and waits until all have loaded the model.

        Raises:
            CprecError: They could not; nothing of them is left.
            PlatformFault: They did not in time; nothing of them is left either.
        """
        await asyncio.to_thread(self._deploy)
        limit_s = self._served.recipe.serve.load_timeout_s
        end = time.monotonic() + limit_s
        try:
            while True:
                status, message = await asyncio.to_thread(self._status)
                if status == ApplicationStatus.RUNNING:
                    self._watching = asyncio.create_task(self._watch())
                    return
                if status == ApplicationStatus.DEPLOY_FAILED:
                    raise find_load_error(self.label, message)
                if time.monotonic() > end:
                    recipe = self._served.recipe
                    raise PlatformFault(
                        f"{self.label} was not loaded within {limit_s:g} s "
                        f"(serve.load_timeout_s): {message or status}; it takes {recipe.workers} "
                        f"replica(s), each with {recipe.train.cpus_per_worker} CPU(s) and "
                        f"{recipe.serve.gpus_per_replica:g} GPU(s), beside those of the model "
                        "that answers meanwhile"
                    )
                await asyncio.sleep(POLL_S)
        except BaseException:
            serve.delete(self._name, _blocking=False)
            raise

    def _deploy(self) -> None:
        """Asks Serve for the replicas."""
        recipe = self._served.recipe
        batches = BATCHES_UNDER_WAY * recipe.evaluate.batch
        deployment = serve.deployment(
            name=DEPLOYMENT,
            num_replicas=recipe.workers,
            max_ongoing_requests=batches,
            health_check_period_s=HEALTH_CHECK_S,
            ray_actor_options={
                "num_cpus": recipe.train.cpus_per_worker,
                "num_gpus": recipe.serve.gpus_per_replica,
            },
            max_constructor_retry_count=1,
        )(_Replica)
        target = serve.RunTarget(deployment.bind(self._served), self._name, route_prefix=None)
        (self._handle,) = serve.run_many([target], wait_for_applications_running=False)

    def _status(self) -> tuple[str, str]:
        """Returns the status of the application, and what Serve says about it."""
        overview = serve.status().applications.get(self._name)
        if overview is None:
            return "NOT_STARTED", ""
        # What went wrong in a replica is said of its deployment; the rest is of no use.
        replicas = overview.deployments.get(DEPLOYMENT)
        return overview.status.value, replicas.message if replicas else overview.message

    async def _watch(self) -> None:
        """Says when replicas have died, and when others have taken their place. Never returns."""
        running = wanted = self._served.recipe.workers
        while True:
            await asyncio.sleep(HEALTH_CHECK_S)
            with suppress(RayError, RayServeException):
                before, running = running, await asyncio.to_thread(self._count_running)
                if running != before:
                    self._say(f"{self.label}: {running} of {wanted} replica(s) run")

    def _count_running(self) -> int:
        """Returns the number of replicas that can rank."""
        overview = serve.status().applications.get(self._name)
        if overview is None or DEPLOYMENT not in overview.deployments:
            return 0
        # Its keys are said to be of an enumeration that Serve does not export, and are text.
        states: Mapping[Any, int] = overview.deployments[DEPLOYMENT].replica_states
        return states.get("RUNNING", 0)

    async def rank(self, request: RankRequest) -> RankResponse:
        """Ranks by one of the replicas, chosen by Serve.

        Raises:
            Refusal: The request cannot be ranked.
            ReplicaLost: The replica died.
        """
        assert self._handle is not None
        try:
            answer, batch = await self._handle.remote(request)
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ReplicaLost(str(error)) from None
        except RayTaskError as error:
            if isinstance(error.cause, RayActorError):
                raise ReplicaLost(str(error)) from None
            raise
        self._metrics.batch.observe(batch)
        if isinstance(answer, Refusal):
            raise answer
        ranked: RankResponse = answer
        return ranked

    async def delete(self) -> None:
        """Ends the replicas."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.to_thread(serve.delete, self._name)


@contextmanager
def serve_session(is_local: bool) -> Iterator[None]:
    """Starts Ray Serve without its HTTP proxies, inside a Ray session.

    Args:
        is_local: Whether the session is this job's own, so that everything ends with it. On a
            cluster others may use Serve: only these replicas are ended.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    try:
        yield
    finally:
        for name in () if is_local else serve.status().applications:
            if name.startswith(_PREFIX):
                serve.delete(name)

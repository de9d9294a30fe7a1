"""Sends requests to the replicas of the model that is served, and changes the model under load.

Knows no Ray. All of it runs in one event loop.
"""

import asyncio
from http import HTTPStatus
from typing import Protocol

from cprec.config.sections.recommendation import ServeSettings
from cprec.serving.messages import RankRequest, RankResponse, Refusal, check_limits
from cprec.serving.metrics import ServerMetrics

RETRY_S = 0.05
"""Seconds after which a request is sent again, if the replica that had it died."""
DRAIN_POLL_S = 0.02
"""Seconds between two looks at whether a former model has answered all that it was asked."""


class ReplicaLost(Exception):
    """The replica died, or cannot be reached; whether it ranked the request is not known."""


class Replicas(Protocol):
    """Replicas of one model."""

    label: str
    """What the model is called in answers."""

    async def rank(self, request: RankRequest) -> RankResponse:
        """Ranks by one of the replicas.

        Raises:
            Refusal: The request cannot be ranked.
            ReplicaLost: The replica died; to rank again does no harm.
        """

    async def delete(self) -> None:
        """Ends the replicas."""


class Dispatcher:
    """Sends requests to the replicas of the present model."""

    def __init__(self, settings: ServeSettings, metrics: ServerMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._current: Replicas | None = None
        self._waiting: dict[Replicas, int] = {}

    @property
    def is_ready(self) -> bool:
        """Whether there is a model to rank with."""
        return self._current is not None

    async def rank(self, request: RankRequest) -> RankResponse:
        """Ranks the candidates of a request.

        Raises:
            Refusal: It is too large or cannot be ranked, no model is loaded yet, too many requests
                wait, or there was no answer in time.
        """
        check_limits(request, self._settings)
        if self._current is None:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the model is being loaded; ask again")
        if (waiting := sum(self._waiting.values())) >= self._settings.max_waiting:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{waiting:,} requests wait for an answer, which is as many as may "
                "(serve.max_waiting); ask again",
            )
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._rank_by_any(request)
        except TimeoutError:
            raise Refusal(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"no answer within {self._settings.timeout_s:g} s (serve.timeout_s); ask again",
            ) from None

    async def _rank_by_any(self, request: RankRequest) -> RankResponse:
        """Ranks by the present replicas, again and again while replicas die."""
        while True:
            replicas = self._current
            assert replicas is not None
            self._waiting[replicas] = self._waiting.get(replicas, 0) + 1
            self._metrics.under_way.inc()
            try:
                return await replicas.rank(request)
            except ReplicaLost:
                self._metrics.retries.inc()
            finally:
                self._metrics.under_way.dec()
                self._waiting[replicas] -= 1
            await asyncio.sleep(RETRY_S)

    def switch(self, replicas: Replicas) -> Replicas | None:
        """Sends all requests from now on to other replicas, and returns the former ones."""
        former, self._current = self._current, replicas
        self._metrics.set_model(replicas.label)
        return former

    async def retire(self, former: Replicas) -> None:
        """Ends replicas that get no more requests, once they have answered what they were asked."""
        while self._waiting.get(former, 0):
            await asyncio.sleep(DRAIN_POLL_S)
        self._waiting.pop(former, None)
        await former.delete()

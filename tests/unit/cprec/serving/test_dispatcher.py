"""No request is lost while replicas die and models change; too many are refused."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from cprec.config.sections.recommendation import ServeSettings
from cprec.serving.dispatcher import Dispatcher, ReplicaLost
from cprec.serving.messages import RankRequest, RankResponse, Refusal
from cprec.serving.metrics import ServerMetrics

REQUEST = RankRequest(history=("a",))


class MemoryReplicas:
    """Replicas that wait a little, and die now and then."""

    def __init__(self, label: str, deaths: float = 0.0, seconds: float = 0.0) -> None:
        self.label = label
        self.is_deleted = False
        self._deaths = deaths
        self._seconds = seconds
        self._random = random.Random(label)

    async def rank(self, request: RankRequest) -> RankResponse:
        assert not self.is_deleted
        await asyncio.sleep(self._seconds or self._random.random() / 100)
        assert not self.is_deleted, "ended while it was asked"
        if self._random.random() < self._deaths:
            raise ReplicaLost("it died")
        return RankResponse(items=(), candidates=0, model=self.label, domain="")

    async def delete(self) -> None:
        self.is_deleted = True


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_every_request_is_answered_while_models_change_and_replicas_die() -> None:
    async def test() -> None:
        metrics = ServerMetrics()
        dispatcher = Dispatcher(ServeSettings(), metrics)
        models = [MemoryReplicas(f"model-{i}", deaths=0.3) for i in range(4)]
        assert dispatcher.switch(models[0]) is None
        asked = []
        for following in models[1:]:
            asked += [asyncio.create_task(dispatcher.rank(REQUEST)) for _ in range(50)]
            await asyncio.sleep(0.02)
            former = dispatcher.switch(following)
            after = await dispatcher.rank(REQUEST)
            assert after.model == following.label
            assert former is not None
            await dispatcher.retire(former)
            assert former.is_deleted  # type: ignore[attr-defined]
        answers = await asyncio.gather(*asked)
        assert len({answer.model for answer in answers}) > 1
        assert metrics.retries._value.get() > 10
        assert metrics.under_way._value.get() == 0

    run(test())


def test_what_is_too_much_or_too_late_is_refused() -> None:
    async def test() -> None:
        settings = ServeSettings(max_waiting=2, timeout_s=0.1, max_history=3)
        dispatcher = Dispatcher(settings, ServerMetrics())
        with pytest.raises(Refusal, match="being loaded"):
            await dispatcher.rank(REQUEST)
        dispatcher.switch(MemoryReplicas("slow", seconds=10))
        asked = [asyncio.create_task(dispatcher.rank(REQUEST)) for _ in range(3)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        statuses = [answer.status for answer in answers if isinstance(answer, Refusal)]
        assert statuses == [504, 504, 503]
        with pytest.raises(Refusal, match=r"history: 4; .* 3 at most \(serve.max_history\)"):
            await dispatcher.rank(RankRequest(history=("a",) * 4))
        # Those that were not answered in time take nobody's place any more.
        with pytest.raises(Refusal, match="no answer within"):
            await dispatcher.rank(REQUEST)

    run(test())


def test_replicas_that_stay_dead_end_in_a_refusal() -> None:
    async def test() -> None:
        dispatcher = Dispatcher(ServeSettings(timeout_s=0.3), ServerMetrics())
        dispatcher.switch(MemoryReplicas("dead", deaths=1.0))
        with pytest.raises(Refusal, match="no answer within"):
            await dispatcher.rank(REQUEST)

    run(test())

"""What the interface answers, counts and tells, without a network and without Ray."""

import asyncio
import json
from typing import Any

import pytest

from cprec.config.sections.recommendation import ServeSettings
from cprec.serving.access import Message
from cprec.serving.dispatcher import Dispatcher
from cprec.serving.http_app import build_app
from cprec.serving.messages import RankedItem, RankRequest, RankResponse
from cprec.serving.metrics import Metrics

TOKEN = "a-token-of-enough-characters"


class OneReplica:
    """Replicas of which the item `fault` is more than they can take."""

    label = "version-1"

    async def rank(self, request: RankRequest) -> RankResponse:
        if "fault" in request.history:
            raise RuntimeError("a secret of the server")
        item = RankedItem(item="a", title="oak lamp", score=-1.5, probability=1.0)
        return RankResponse(items=(item,), candidates=1, model=self.label, domain="Games")

    async def delete(self) -> None:
        raise AssertionError


class Site:
    def __init__(self) -> None:
        self.dispatcher = Dispatcher(ServeSettings(), Metrics())
        self.metrics = Metrics()
        self._app = build_app(ServeSettings(), self.dispatcher, self.metrics, TOKEN)

    def ask(self, path: str, body: Any = None) -> tuple[int, str, dict[str, str]]:
        """Returns status, content and headers of an answer."""
        content = b"" if body is None else json.dumps(body).encode()
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET" if body is None else "POST",
            "path": path,
            "query_string": b"",
            "headers": [
                (b"authorization", f"Bearer {TOKEN}".encode()),
                (b"content-type", b"application/json"),
            ],
        }

        async def answer() -> None:
            await self._app(scope, receive, send)

        asyncio.run(answer())
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], b"".join(m["body"] for m in sent[1:]).decode(), headers


@pytest.fixture
def site() -> Site:
    return Site()


def test_ready_is_said_once_there_is_a_model(site: Site) -> None:
    assert site.ask("/health")[:2] == (200, "ok")
    assert site.ask("/ready")[:2] == (503, "loading")
    status, content, headers = site.ask("/rank", {"history": ["a"]})
    assert (status, headers["retry-after"]) == (503, "1")
    assert "being loaded" in json.loads(content)["error"]
    site.dispatcher.switch(OneReplica())
    assert site.ask("/ready")[:2] == (200, "ready")
    status, content, _ = site.ask("/rank", {"history": ["a"]})
    assert status == 200
    assert json.loads(content) == {
        "items": [{"item": "a", "title": "oak lamp", "score": -1.5, "probability": 1.0}],
        "candidates": 1,
        "model": "version-1",
        "domain": "Games",
    }


def test_every_error_has_the_same_form_and_is_counted(site: Site) -> None:
    site.dispatcher.switch(OneReplica())
    for path, body, status in (
        ("/rank", {"history": "a"}, 422),
        ("/rank", [], 422),
        ("/rank", None, 405),
        ("/nowhere", None, 404),
    ):
        found, content, _ = site.ask(path, body)
        assert (found, list(json.loads(content))) == (status, ["error"])
    # The server raises the fault once more after its answer, so that it is printed.
    with pytest.raises(RuntimeError, match="a secret of the server"):
        site.ask("/rank", {"history": ["fault"]})
    text = site.ask("/metrics")[1]
    for status, count in ((422, 2), (405, 1), (500, 1)):
        assert f'cprec_serve_requests_total{{status="{status}"}} {count}.0' in text
    assert "cprec_serve_seconds_count 0.0" in text


def test_the_page_tells_limits_token_and_statuses(site: Site) -> None:
    page = json.loads(site.ask("/openapi.json")[1])
    assert "1,000 items of history" in page["info"]["description"]
    rank = page["paths"]["/rank"]["post"]
    assert set(rank["responses"]) == {"200", "401", "413", "422", "503", "504"}
    assert rank["security"] == [{"HTTPBearer": []}]
    assert "security" not in page["paths"]["/health"]["get"]

"""What the interface answers, counts and tells, without a network and without Ray."""

import asyncio
import json
import re
from typing import Any

import pytest
from markupsafe import escape

from cprec.config.sections.recommendation import ServeSettings
from cprec.serving.access import Message
from cprec.serving.dispatcher import Dispatcher
from cprec.serving.docs_page import describe_type
from cprec.serving.http_app import NO_OBJECT, build_app
from cprec.serving.messages import RankedItem, RankRequest, RankResponse
from cprec.serving.metrics import ServerMetrics

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
        self.dispatcher = Dispatcher(ServeSettings(), ServerMetrics())
        self.metrics = ServerMetrics()
        self._app = build_app(ServeSettings(), self.dispatcher, self.metrics, TOKEN)

    def ask(
        self, path: str, body: Any = None, kind: str = "application/json"
    ) -> tuple[int, str, dict[str, str]]:
        """Returns status, content and headers of an answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [
                (b"authorization", f"Bearer {TOKEN}".encode()),
                (b"content-type", kind.encode()),
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
    assert site.ask("/rank")[2]["allow"] == "POST"
    text = site.ask("/metrics")[1]
    for status, count in ((422, 2), (405, 2), (500, 1)):
        assert f'cprec_serve_requests_total{{status="{status}"}} {count}.0' in text
    assert "cprec_serve_seconds_count 0.0" in text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 422, NO_OBJECT),
        (b"null", 422, NO_OBJECT),
        (b"[" * 100_000, 400, "There was an error parsing the body"),
        (b'{"history": "a"}', 422, "history: Input should be a list"),
        (b'{"history": [1]}', 422, "history.0: Input should be a valid string"),
        (b'{"history": ["a", null]}', 422, "history.1: Input should be a valid string"),
        (b'{"history": ["a"], "k": NaN}', 422, "k: Input should be a valid integer"),
        (b'{"history": ["a"], "k": true}', 422, "k: Input should be a valid integer"),
        (b'{"history": ["a"], "k": "5"}', 422, "k: Input should be a valid integer"),
        (b'{"history": ["a"], "k": ' + b"9" * 4000 + b"}", 422, "k: 9,999,"),
        (b'{"history": ["a"], "k": ' + b"9" * 5000 + b"}", 400, "There was an error parsing"),
        (b'{"history": ["a"], "' + b"x" * 100_000 + b'": 1}', 422, "xxx"),
        (b'{"history": ["a"], "\\ud800": 1}', 422, "body: Input should be a valid string"),
    ],
)
def test_no_body_is_too_odd_for_a_short_message(
    site: Site, body: bytes, status: int, message: str
) -> None:
    site.dispatcher.switch(OneReplica())
    found, content, _ = site.ask("/rank", body)
    error = json.loads(content)["error"]
    assert (found, error[: len(message)]) == (status, message)
    assert len(error) < 500


def test_a_list_of_many_wrong_values_is_refused_at_the_first(site: Site) -> None:
    site.dispatcher.switch(OneReplica())
    body = json.dumps({"history": [1] * 80_000}).encode()
    _, content, _ = site.ask("/rank", body)
    assert json.loads(content)["error"] == "history.0: Input should be a valid string"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain"])
def test_a_forgotten_content_type_is_named(site: Site, kind: str) -> None:
    site.dispatcher.switch(OneReplica())
    status, content, _ = site.ask("/rank", b'{"history": ["a"]}', kind)
    assert (status, json.loads(content)["error"]) == (422, NO_OBJECT)


def test_the_page_needs_no_network(site: Site) -> None:
    """No script, and nothing that a browser would load: not from here, and not from elsewhere."""
    status, page, headers = site.ask("/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page) == ["openapi.json"]
    assert not re.search(r"<script|<iframe|<img|<link|//|@import|url\(", page)
    assert "256 KiB" in page
    for operation in ("POST /rank", "GET /health", "GET /ready", "GET /metrics"):
        assert f"<code>{operation}</code>" in page
    assert page.count("Authorization: Bearer TOKEN") == 2
    document = json.loads(site.ask("/openapi.json")[1])
    for name, schema in document["components"]["schemas"].items():
        assert f"<h2>{name}</h2>" in page
        for field, value in schema["properties"].items():
            assert f"<code>{field}</code>" in page
            assert escape(value["description"]) in page


def test_a_type_is_named_in_words() -> None:
    schemas = RankRequest.model_json_schema()["properties"] | {"x": {"$ref": "#/a/Item"}, "y": {}}
    assert {name: describe_type(schema) for name, schema in schemas.items()} == {
        "history": "list of string",
        "candidates": "list of string or null",
        "k": "integer or null",
        "x": "Item",
        "y": "anything",
    }


def test_the_page_tells_limits_token_and_statuses(site: Site) -> None:
    page = json.loads(site.ask("/openapi.json")[1])
    assert "1,000 items of history" in page["info"]["description"]
    rank = page["paths"]["/rank"]["post"]
    assert set(rank["responses"]) == {"200", "401", "408", "413", "422", "503", "504"}
    assert rank["security"] == [{"HTTPBearer": []}]
    assert "security" not in page["paths"]["/health"]["get"]

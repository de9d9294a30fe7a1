"""Who may ask the console, what it answers, and that its page loads nothing from elsewhere."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RecipeError
from cprec.config.recipe import Recipe
from cprec.console.http_app import SECURITY_HEADERS, STATIC, build_app
from cprec.console.site import Site
from cprec.console.views.commands import Commands
from cprec.serving.access import Message
from cprec.workflows.console import TOKEN_VARIABLE, read_or_make_token

TOKEN = "a-token-of-enough-characters"
OWN = {"host": "127.0.0.1:8090", "authorization": f"Bearer {TOKEN}"}
ACT = {**OWN, "content-type": "application/json", "x-cprec-as": "Ada%20L."}


class Console:
    """The application of an empty storage, without a network."""

    def __init__(self, place: Path) -> None:
        recipe = Recipe(storage=str(place / "runs"), corpus=str(place / "corpus"))
        self.said: list[str] = []
        self.site = Site(recipe, Commands(("my.yaml",)), self.said.append)
        self.app = build_app(self.site, TOKEN, "Ada")

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] = OWN
    ) -> tuple[int, str, dict[str, str]]:
        """Returns status, content and headers of an answer."""
        content = b"" if body is None else json.dumps(body).encode()
        sent: list[Message] = []
        pending = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> Message:
            if not pending:
                await asyncio.Event().wait()  # the client stays, and sends no more
            return pending.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET" if body is None else "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }

        async def call() -> None:
            await self.app(scope, receive, send)

        asyncio.run(call())
        text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        names = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return sent[0]["status"], text, names


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path)


PATHS = ("session", "runs", "runs/x", "domains", "models", "try", "jobs/1", "nowhere")
ACTS: dict[str, Any] = {
    "/api/runs/trunk/requests": {"action": "anneal"},
    "/api/appends": {"domain": "Music", "commit": True},
    "/api/promotions": {"model": "cprec", "version": 1, "commit": True},
    "/api/rollbacks": {"commit": True},
    "/api/try": {"ask": "users", "domain": "Music", "find": ""},
}


@pytest.mark.parametrize("path", ["/api/nowhere", "/api/runs/a/b"])
def test_an_address_that_nobody_has_is_refused_in_words(console: Console, path: str) -> None:
    status, text, _ = console.ask(path)
    assert (status, json.loads(text)) == (404, {"error": "Not Found"})


def test_an_origin_that_is_none_is_foreign(console: Console) -> None:
    status, text, _ = console.ask("/api/session", headers={**OWN, "origin": "http://["})
    assert (status, json.loads(text)["error"]) == (403, "asked by a page of another origin")


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_without_the_token_nothing_is_told_or_done(console: Console, token: str | None) -> None:
    headers = {"host": "127.0.0.1:8090"} | ({} if token is None else {"authorization": token})
    for path in PATHS:
        assert console.ask(f"/api/{path}", None, headers)[0] == 401
    for path, body in ACTS.items():
        assert console.ask(path, body, {**ACT, **headers, "authorization": token or ""})[0] == 401
    assert console.said == []


@pytest.mark.parametrize(
    "foreign",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_origin_is_refused_even_with_the_token(
    console: Console, foreign: dict[str, str]
) -> None:
    for path, body in ACTS.items():
        status, text, _ = console.ask(path, body, ACT | foreign)
        assert (status, json.loads(text)["error"]) == (403, "asked by a page of another origin")
    assert console.ask("/api/session", None, OWN | foreign)[0] == 403
    assert console.said == []


def test_an_act_needs_the_header_that_no_form_can_send(console: Console) -> None:
    for path, body in ACTS.items():
        headers = {name: value for name, value in ACT.items() if name != "x-cprec-as"}
        assert console.ask(path, body, headers)[0] == 422
    assert console.said == []


def test_every_answer_forbids_what_the_page_does_not_need(console: Console) -> None:
    for path, headers in (("/", {}), ("/static/app.js", {}), ("/api/session", {}), ("/x", OWN)):
        names = console.ask(path, None, headers)[2]
        for name, value in SECURITY_HEADERS.items():
            assert names[name.lower()] == value
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_needs_no_token_and_has_no_data(console: Console, tmp_path: Path) -> None:
    status, page, _ = console.ask("/", None, {})
    assert status == 200
    assert str(tmp_path) not in page
    for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        assert console.ask(name, None, {})[0] == 200


def test_the_page_makes_no_markup_of_data_and_loads_nothing_from_elsewhere() -> None:
    files = {path.name: path.read_text() for path in STATIC.rglob("*.*")}
    assert {"index.html", "app.js", "try.js", "style.css"} <= files.keys()
    for name, text in files.items():
        own = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", own), name
        markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|srcdoc"
        assert not re.search(markup, text), name
    assert not re.search(r"<script>|<style|style=| on\w+=", files["index.html"])


def test_the_session_is_told(console: Console) -> None:
    status, text, _ = console.ask("/api/session")
    assert status == 200
    assert json.loads(text)["name"] == "Ada"


def test_a_request_to_a_run_that_is_not_under_way_is_refused(console: Console) -> None:
    status, text, _ = console.ask("/api/runs/trunk/requests", {"action": "hold"}, ACT)
    assert status == 409
    assert "the run trunk is not under way" in json.loads(text)["error"]
    assert console.said == ["console (Ada L.) asks trunk to hold"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/runs/trunk/requests", {"action": "look"}),
        ("/api/runs/trunk/requests", {"action": "hold", "more": 1}),
        ("/api/appends", {"domain": "x" * 501, "commit": False}),
        ("/api/promotions", {"model": "--rollback", "version": 1, "commit": False}),
        ("/api/promotions", {"model": "cprec", "version": "1; x", "commit": False}),
    ],
)
def test_what_the_page_would_not_ask_is_refused(console: Console, path: str, body: Any) -> None:
    assert console.ask(path, body, ACT)[0] == 422
    assert console.said == []


@pytest.mark.parametrize("name", ["..", ".", "a\\b", "a\nb"])
def test_no_name_of_a_run_leaves_the_storage(console: Console, name: str) -> None:
    status, text, _ = console.ask(f"/api/runs/{name}/requests", {"action": "hold"}, ACT)
    assert (status, "a run has a name" in text) in ((409, True), (404, False))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/appends", {"domain": "\ud800", "commit": False}),
        ("/api/promotions", {"model": "\ud800", "version": 1, "commit": False}),
        ("/api/runs/trunk/requests", {"action": "\ud800"}),
        ("/api/runs/trunk/requests", {"\ud800": "hold"}),
    ],
)
def test_half_a_character_is_refused_in_words(console: Console, path: str, body: Any) -> None:
    status, text, _ = console.ask(path, body, ACT)
    assert status == 422
    assert json.loads(text)["error"]


def test_a_body_that_is_too_long_is_not_read(console: Console) -> None:
    assert console.ask("/api/appends", {"domain": "x" * 70_000, "commit": False}, ACT)[0] == 413


def test_a_domain_that_the_data_root_lacks_is_not_appended(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cprec.console.site.find_domains", lambda data: ["Music"])
    body = {"domain": "--corpus=elsewhere", "commit": True}
    status, text, _ = console.ask("/api/appends", body, ACT)
    assert status == 409
    assert "no such domain" in text


def test_a_token_is_made_unless_one_is_given() -> None:
    first, is_new = read_or_make_token({})
    assert is_new
    assert len(first) >= 32
    assert read_or_make_token({})[0] != first
    environment = {TOKEN_VARIABLE: TOKEN}
    assert read_or_make_token(environment) == (TOKEN, False)
    assert environment == {}
    with pytest.raises(RecipeError, match=f"{TOKEN_VARIABLE}: 5 character"):
        read_or_make_token({TOKEN_VARIABLE: "short"})

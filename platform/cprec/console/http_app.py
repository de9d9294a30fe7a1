"""The HTTP interface of the console: a page, what it asks, and what keeps others out."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from cluster.errors import CprecError
from cprec.config.secrets import redact
from cprec.console.child_jobs import ChildJob
from cprec.console.site import Site
from cprec.console.views.acts import RunAction
from cprec.console.views.encoding import encode
from cprec.console.watch import Watch
from cprec.serving.access import AccessGate, App, Message, Receive, Send
from cprec.serving.http_app import describe_errors
from cprec.serving.messages import Problem

STATIC = Path(__file__).parent / "static"

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 10.0
"""Time that the body of a request may take to come (seconds)."""

MAX_NAME = 40
"""Characters of the name of whoever does something."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Sent with every answer: nothing but the page's own files is loaded, or may show the page."""


class Body(BaseModel):
    """A body of a request; no other fields are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunRequest(Body):
    """What a run is asked to do."""

    action: RunAction


class AppendRequest(Body):
    """A domain to append; without `commit`, what that would do is only said."""

    domain: str = Field(max_length=500)
    commit: bool


class PromotionRequest(Body):
    """A version to put before the gate; without `commit`, what that would do is only said."""

    model: str = Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    version: int = Field(ge=1)
    commit: bool


class RollbackRequest(Body):
    """A rollback; without `commit`, what that would do is only said."""

    commit: bool


Title = Annotated[str, Field(max_length=2000)]
DomainName = Annotated[str, Field(max_length=500)]


class UsersQuestion(Body):
    """Which users a domain has."""

    ask: Literal["users"]
    domain: DomainName
    find: str = Field(max_length=500)


class SampleQuestion(Body):
    """What a user took, and between what the next choice was."""

    ask: Literal["sample"]
    domain: DomainName
    user: str = Field(max_length=500)


class TitlesQuestion(Body):
    """Which titles a domain has."""

    ask: Literal["titles"]
    domain: DomainName
    find: str = Field(max_length=500)


class RankQuestion(Body):
    """How models rank candidates after a history."""

    ask: Literal["rank"]
    domain: DomainName
    models: list[Annotated[str, Field(max_length=300, pattern=r"^(models:/.+|base)$")]] = Field(
        min_length=1, max_length=2
    )
    history: list[Title] = Field(max_length=500)
    candidates: list[Title] = Field(max_length=200)


Question = Annotated[
    UsersQuestion | SampleQuestion | TitlesQuestion | RankQuestion, Field(discriminator="ask")
]


@dataclass(frozen=True)
class Session:
    """What the page shows of the console itself."""

    name: str
    storage: str
    corpus: str
    data_root: str
    model: str


def build_app(site: Site, token: str, name: str) -> App:
    """Builds the application.

    Args:
        site: What is served.
        token: What browsers must send.
        name: Name of whoever started the console; it counts until a browser gives another.
    """

    app = FastAPI(title="cprec console", docs_url=None, redoc_url=None, openapi_url=None)
    _add_views(app, site, name)
    _add_acts(app, site)
    _add_questions(app, site)
    _add_errors(app)
    app.mount("/static", StaticFiles(directory=STATIC))
    gate = AccessGate(
        app, token, MAX_BODY_BYTES, BODY_TIMEOUT_S, _is_open, "the limit of the console"
    )
    return _shield(gate)


def _is_open(path: str) -> bool:
    """Returns whether a path asks for no token: the page itself, which has no data."""
    return not path.startswith("/api/")


def _add_views(app: FastAPI, site: Site, name: str) -> None:
    @app.get("/")
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/session")
    async def session() -> Response:
        recipe = site.recipe
        return _json(
            Session(name, site.storage, recipe.corpus, recipe.data.root_paths, recipe.mlflow.model)
        )

    @app.get("/api/runs")
    async def runs() -> Response:
        return _stream(site.runs)

    @app.get("/api/runs/{run}")
    async def run_parts(run: str) -> Response:
        return _stream(site.watch_run(run))

    @app.get("/api/domains")
    async def domains() -> Response:
        return _json(await asyncio.to_thread(site.read_domains))

    @app.get("/api/models")
    async def models() -> Response:
        return _json(await asyncio.to_thread(site.read_models))

    @app.get("/api/jobs/{number}")
    async def job(number: int) -> Response:
        return _json(site.jobs.find(number))


def _read_sender(x_cprec_as: Annotated[str, Header()]) -> str:
    """Returns who does something, for events; a page of another origin cannot send the header."""
    name = " ".join(re.sub(r"[^\w .@-]", " ", unquote(x_cprec_as)).split())[:MAX_NAME]
    return f"console ({name or 'nobody'})"


Sender = Annotated[str, Depends(_read_sender)]


def _add_acts(app: FastAPI, site: Site) -> None:
    @app.post("/api/runs/{run}/requests")
    async def ask(run: str, request: RunRequest, by: Sender) -> Response:
        return _json({"answer": await site.ask(run, request.action, by)})

    @app.post("/api/appends")
    async def append(request: AppendRequest, by: Sender) -> Response:
        return _started(await site.append(request.domain, request.commit, by))

    @app.post("/api/promotions")
    async def promote(request: PromotionRequest, by: Sender) -> Response:
        return _started(await site.promote(request.model, request.version, request.commit, by))

    @app.post("/api/rollbacks")
    async def roll_back(request: RollbackRequest, by: Sender) -> Response:
        return _started(await site.roll_back(request.commit, by))


def _add_questions(app: FastAPI, site: Site) -> None:
    @app.get("/api/try")
    async def choices() -> Response:
        return _json(await site.ranking.ask({"ask": "choices"}))

    @app.post("/api/try")
    async def answer(question: Question, by: Sender) -> Response:
        return _json(await site.ranking.ask(question.model_dump()))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(CprecError)
    async def explain(request: Request, error: CprecError) -> Response:
        return _problem(HTTPStatus.CONFLICT, redact(str(error)))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return _problem(HTTPStatus(error.status_code), str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def describe(request: Request, error: RequestValidationError) -> Response:
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, describe_errors(error.errors()))

    @app.exception_handler(Exception)
    async def admit(request: Request, error: Exception) -> Response:
        # uvicorn prints the error with its traceback.
        return _problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"a fault of the console, which has printed it: {type(error).__name__}",
        )


def _shield(app: App) -> App:
    """Refuses what a page of another origin asks, and sends the security headers."""
    own = [(name.lower().encode(), text.encode()) for name, text in SECURITY_HEADERS.items()]
    own_names = {name for name, _ in own}

    async def shielded(scope: Any, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [entry for entry in message["headers"] if entry[0] not in own_names]
                message = {**message, "headers": [*kept, *own]}
            await send(message)

        if scope["type"] == "http" and _is_foreign(scope["path"], dict(scope["headers"])):
            refusal = _problem(HTTPStatus.FORBIDDEN, "asked by a page of another origin")
            await refusal(scope, receive, send_with_headers)
            return
        await app(scope, receive, send_with_headers)

    return shielded


def _is_foreign(path: str, headers: Mapping[bytes, bytes]) -> bool:
    """Returns whether a page of another origin asks for data; a browser says where it is from."""
    if _is_open(path):
        return False
    origin = headers.get(b"origin")
    if origin is not None and _find_host(origin) != headers.get(b"host"):
        return True
    return headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")


def _find_host(origin: bytes) -> bytes | None:
    """Returns host and port of an origin; None if it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _stream(watch: Watch) -> Response:
    """Returns the parts of a watch as server-sent events, each with its name and content."""

    async def events() -> AsyncIterator[bytes]:
        async for news in watch.follow():
            yield (
                b"".join(
                    b'data: {"name":%b,"content":%b}\n\n' % (encode(name), content or b"null")
                    for name, content in news
                )
                or b": nothing new\n\n"
            )

    return StreamingResponse(events(), media_type="text/event-stream")


def _json(view: Any) -> Response:
    return Response(encode(view), media_type="application/json")


def _started(job: ChildJob) -> Response:
    return Response(encode(job), HTTPStatus.ACCEPTED, media_type="application/json")


def _problem(status: HTTPStatus, message: str) -> Response:
    return JSONResponse(Problem(error=message).model_dump(), int(status))

"""The HTTP interface: its paths, statuses and messages, as an ASGI application."""

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from cprec.config.sections.recommendation import ServeSettings
from cprec.serving.access import AccessGate, App, Message, Receive, Send
from cprec.serving.dispatcher import Dispatcher
from cprec.serving.docs_page import HEADERS, render_docs
from cprec.serving.messages import Problem, RankRequest, RankResponse, Refusal
from cprec.serving.metrics import ServerMetrics

REFUSALS: dict[int | str, dict[str, Any]] = {
    int(status): {"model": Problem, "description": text}
    for status, text in {
        HTTPStatus.UNAUTHORIZED: "No token, or a wrong one",
        HTTPStatus.REQUEST_TIMEOUT: "The body did not come in time",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too long",
        HTTPStatus.UNPROCESSABLE_ENTITY: "The request cannot be ranked; the message says why",
        HTTPStatus.SERVICE_UNAVAILABLE: "The model is being loaded, or too many requests wait",
        HTTPStatus.GATEWAY_TIMEOUT: "There was no answer in time",
    }.items()
}
"""What /rank answers where it does not rank."""
MAX_ERRORS = 3
"""Wrong fields that a message names."""
MAX_CHARACTERS = 400
"""Characters of a message: what was sent may be long, and is not sent back as a whole."""
NO_OBJECT_TYPES = ("missing", "model_attributes_type")
NO_OBJECT = "body: no JSON object; send one, with the header Content-Type: application/json"


def build_app(
    settings: ServeSettings, dispatcher: Dispatcher, metrics: ServerMetrics, token: str
) -> App:
    """Builds the application.

    Args:
        settings: Limits.
        dispatcher: Ranks.
        metrics: Takes the figures of each request.
        token: What clients must send.
    """
    app = FastAPI(
        title="cprec",
        version="1",
        description="Ranks items after a history. "
        f"Limits: {settings.max_history:,} items of history, {settings.max_candidates:,} "
        f"candidates, {settings.max_kib:,} KiB.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # The gate checks the token; this tells the OpenAPI page of it.
    needs_token = [Depends(HTTPBearer(auto_error=False, description="token of this server"))]

    @app.post("/rank", responses=REFUSALS, dependencies=needs_token)
    async def rank(request: RankRequest) -> RankResponse:
        """Ranks candidates, or items that are retrieved of the whole domain."""
        return await dispatcher.rank(request)

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> str:
        """Says that the server runs."""
        return "ok"

    @app.get("/ready", response_class=PlainTextResponse)
    async def ready() -> Response:
        """Says whether a model is loaded: 200, or 503."""
        if dispatcher.is_ready:
            return PlainTextResponse("ready")
        return PlainTextResponse("loading", HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=needs_token)
    async def figures() -> Response:
        """Returns the figures that Prometheus reads."""
        return Response(metrics.to_text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(render_docs(app.openapi()), headers=HEADERS)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> Response:
        again = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
        headers = {"Retry-After": "1"} if error.status in again else None
        return _answer_problem(error.status, error.message, headers)

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> Response:
        return _answer_problem(HTTPStatus(error.status_code), str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def admit_fault(request: Request, error: Exception) -> Response:
        # uvicorn prints the error with its traceback: it is no business of a client.
        return _answer_problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the server, which has printed it"
        )

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> Response:
        return _answer_problem(HTTPStatus.UNPROCESSABLE_ENTITY, describe_errors(error.errors()))

    gate = AccessGate(app, token, settings.max_kib * 1024, settings.timeout_s)
    return _measure(gate, metrics)


def describe_errors(errors: Any) -> str:
    """Returns what is wrong with a body.

    Args:
        errors: Errors of pydantic.
    """
    if errors and errors[0]["type"] == "json_invalid":
        return f"body: no JSON ({errors[0]['ctx']['error']}, at character {errors[0]['loc'][-1]})"
    if errors and errors[0]["loc"] == ("body",) and errors[0]["type"] in NO_OBJECT_TYPES:
        return NO_OBJECT
    parts = [
        f"{'.'.join(map(str, error['loc'][1:])) or 'body'}: {_describe_error(error)}"
        for error in errors[:MAX_ERRORS]
    ]
    more = len(errors) - MAX_ERRORS
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _describe_error(error: Mapping[str, Any]) -> str:
    """Returns what is wrong with a field, in the words of JSON."""
    return "Input should be a list" if error["type"] == "tuple_type" else str(error["msg"])


def _answer_problem(
    status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns an answer that says what is wrong."""
    if len(message) > MAX_CHARACTERS:
        message = f"{message[:MAX_CHARACTERS]} ..."
    return JSONResponse(Problem(error=message).model_dump(), status, headers)


def _measure(app: App, metrics: ServerMetrics) -> App:
    """Counts what an application answers to /rank, refused or not, and how long that takes."""

    async def measured(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/rank":
            await app(scope, receive, send)
            return
        started = time.perf_counter()
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, note_status)
        finally:
            metrics.requests.labels(str(status)).inc()
            if status == HTTPStatus.OK:
                metrics.seconds.observe(time.perf_counter() - started)

    return measured

"""Who may ask, and how much may be sent: checked before a body is read. Pure ASGI."""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from cluster.errors import RecipeError
from cprec.serving.messages import Problem

TOKEN_VARIABLE = "CPREC_SERVE_TOKEN"  # noqa: S105  the name of a variable
MIN_TOKEN_CHARACTERS = 16
OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
"""Paths that ask for no token: probes cannot send one, and the others describe the interface."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]


def read_token(
    environment: MutableMapping[str, str] = os.environ, variable: str = TOKEN_VARIABLE
) -> str:
    """Reads the token, and takes it out of the environment, so that no process inherits it.

    Args:
        environment: Has the token, or the path of a file that has it.
        variable: Name of the variable; with `_FILE` behind it, that of the path.

    Raises:
        RecipeError: There is none, or it is too short or has blanks. The token is never shown.
    """
    file_variable = f"{variable}_FILE"
    token, path = environment.pop(variable, ""), environment.get(file_variable, "")
    origin = variable
    if not token and path:
        origin = f"{file_variable} ({path})"
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8 text"
            raise RecipeError(f"{origin}: cannot be read: {reason}") from None
    if not token and not path:
        raise RecipeError(
            f"{variable}: none given, and everybody who asks must send it; set it in the "
            f"environment, or {file_variable} to a file that has it. To make one: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
        raise RecipeError(
            f"{origin}: {len(token)} character(s); a token has {MIN_TOKEN_CHARACTERS} at least, "
            "all of them printable ASCII"
        )
    if " " in token:
        raise RecipeError(f"{origin}: has a blank; a token has none")
    return token


def is_allowed(headers: Mapping[bytes, bytes], token: str) -> bool:
    """Returns whether a request has the token; takes equally long for every wrong one."""
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    matches = secrets.compare_digest(given.strip(), token.encode())
    return matches and scheme.lower() == b"bearer"


class AccessGate:
    """Passes on to an application those requests that have the token and are not too long.

    A body that is too long is cut off where it is: it is never held as a whole. One that comes too
    slowly is not waited for.
    """

    def __init__(
        self,
        app: App,
        token: str,
        max_bytes: int,
        timeout_s: float,
        is_open: Callable[[str], bool] = OPEN_PATHS.__contains__,
        limit_name: str = "serve.max_kib",
    ) -> None:
        """Takes the application.

        Args:
            app: The application.
            token: The token.
            max_bytes: Bytes of a body, at most.
            timeout_s: Time that a body may take to come (s).
            is_open: Tells whether a path asks for no token.
            limit_name: What sets the limit, for the message.
        """
        self._app = app
        self._token = token
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._is_open = is_open
        self._limit_name = limit_name

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 401, 408 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._is_open(scope["path"]) and not is_allowed(headers, self._token):
            await _refuse(
                HTTPStatus.UNAUTHORIZED,
                "no token, or a wrong one; send the header Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer", "Connection": "close"},  # what follows is not read
            )(scope, receive, send)
            return
        try:
            announced = int(headers.get(b"content-length", b"0"))
        except ValueError:
            announced = 0  # the server has refused it already, or counts what comes
        body = b""
        if announced <= self._max_bytes:
            try:
                async with asyncio.timeout(self._timeout_s):
                    body, whole = await _read(receive, self._max_bytes)
            except TimeoutError:
                await _refuse(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the body did not come within {self._timeout_s:g} s (serve.timeout_s)",
                    {"Connection": "close"},
                )(scope, receive, send)
                return
        if announced > self._max_bytes or not whole:
            seen = f"{announced:,} bytes" if announced > self._max_bytes else "the body"
            await _refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{seen}: more than {self._max_bytes:,} bytes, which this server takes at most "
                f"({self._limit_name})",
                {"Connection": "close"},
            )(scope, receive, send)
            return
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive, max_bytes: int) -> tuple[bytes, bool]:
    """Reads a body; returns it, and whether it is whole and short enough."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body), True  # the client has gone; the application finds out
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return b"", False
        if not message.get("more_body", False):
            return bytes(body), True


def _refuse(status: HTTPStatus, message: str, headers: Mapping[str, str]) -> JSONResponse:
    """Returns the answer to a request that is refused."""
    return JSONResponse(Problem(error=message).model_dump(), int(status), dict(headers))

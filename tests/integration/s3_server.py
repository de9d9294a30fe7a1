"""An S3 server that enforces conditional puts, and fails when told to.

    python -m tests.integration.s3_server DESCRIPTOR

It takes a socket that listens already (its file descriptor), so nobody can take its port before.

moto first checks whether the object exists and then writes it, so two puts at the same time can
both succeed. A test of racing commits needs a server where only one does. Therefore this one
answers conditional requests one after the other.

PUT /-/faults with {"kind": KIND, "times": N} makes each call of a client fail N times in a row
before it succeeds; {} makes the server well again. It answers how many have failed.
"""

import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

_LOCK = threading.Lock()
_MOTO = DomainDispatcherApplication(create_backend_app)

SLOW_S = 1.0
"""Time that a slow answer takes longer (seconds)."""

_UNAVAILABLE = b"<Error><Code>ServiceUnavailable</Code><Message>try again later</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>not for you</Message></Error>"


class Faults:
    """What fails: 503, 403, slow, reset (before), lost (after the effect), cut (in the answer)."""

    def __init__(self) -> None:
        self.kind, self.times, self.failed = "", 0, 0
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def set(self, kind: str = "", times: int = 1) -> int:
        """Chooses what fails from now on; returns how many requests have failed before."""
        with self._lock:
            failed, self.failed = self.failed, 0
            self.kind, self.times = kind, times
            self._counts.clear()
        return failed

    def fails(self, environ: dict[str, Any]) -> bool:
        """Counts a request; returns whether it fails."""
        method = environ["REQUEST_METHOD"]
        if not self.kind or (self.kind == "cut" and method != "GET"):
            return False
        # An answer that breaks off is asked for again by a call of its own.
        call = "" if self.kind == "cut" else environ.get("HTTP_AMZ_SDK_INVOCATION_ID", "")
        key = (method, environ["PATH_INFO"], environ["QUERY_STRING"], call)
        with self._lock:
            fails = self._counts[key] < self.times
            self._counts[key] += 1
            self.failed += fails
        return fails


FAULTS = Faults()


def answer(environ: dict[str, Any], start_response: Any) -> Any:
    """The WSGI application: answers one request."""
    if environ["PATH_INFO"] == "/-/faults":
        size = int(environ.get("CONTENT_LENGTH") or 0)
        failed = FAULTS.set(**json.loads(environ["wsgi.input"].read(size)))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(failed).encode()]
    if not FAULTS.fails(environ):
        return _answer_well(environ, start_response)
    kind = FAULTS.kind
    if kind in ("503", "403"):
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status = "503 Service Unavailable" if kind == "503" else "403 Forbidden"
        start_response(status, [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":  # whose answer has no body
            return []
        return [_UNAVAILABLE if kind == "503" else _DENIED]
    if kind == "slow":
        time.sleep(SLOW_S)
        return _answer_well(environ, start_response)
    if kind == "reset":
        return _hang_up(environ)
    if kind == "lost":
        list(_answer_well(environ, lambda status, headers, *_: None))
        return _hang_up(environ)
    body = b"".join(_answer_well(environ, start_response))  # start_response gives the whole length
    return _cut(environ, body[: len(body) // 2])


def _answer_well(environ: dict[str, Any], start_response: Any) -> Any:
    if not {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"} & set(environ):
        return _MOTO(environ, start_response)
    with _LOCK:
        return _MOTO(environ, start_response)


def _cut(environ: dict[str, Any], half: bytes) -> Any:
    if half:
        yield half
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> Any:
    """Resets the connection of a request."""
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


if __name__ == "__main__":
    listening = socket.socket(fileno=int(sys.argv[1]))
    host, port = listening.getsockname()
    make_server(
        host,
        port,
        answer,
        threaded=True,
        request_handler=MotoRequestHandler,
        fd=listening.fileno(),
    ).serve_forever()

"""An S3 server on the loopback interface that keeps its word on conditional puts: python -m tests.integration.s3_server PORT.

moto looks whether the object is there and then writes it, as two steps: two puts at once can both be let through, which is what
a test of racing commits must not meet. Here conditional requests are answered one after another.
"""

import sys
import threading
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple

_TURN = threading.Lock()
_MOTO = DomainDispatcherApplication(create_backend_app)


def answer(environ: dict[str, Any], start_response: Any) -> Any:
    """A WSGI application: an iterable of bytes."""
    if "HTTP_IF_NONE_MATCH" not in environ:
        return _MOTO(environ, start_response)
    with _TURN:
        return _MOTO(environ, start_response)


if __name__ == "__main__":
    run_simple(
        "127.0.0.1", int(sys.argv[1]), answer, threaded=True, request_handler=MotoRequestHandler
    )

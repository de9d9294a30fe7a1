"""An S3 server on the loopback interface that enforces conditional puts.

    python -m tests.integration.s3_server PORT

moto first checks whether the object exists and then writes it, so two puts at the same time can
both succeed. A test of racing commits needs a server where only one does. Therefore this one
answers conditional requests one after the other.
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

_LOCK = threading.Lock()
_MOTO = DomainDispatcherApplication(create_backend_app)


def answer(environ: dict[str, Any], start_response: Any) -> Any:
    """The WSGI application: answers one request."""
    if not {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"} & set(environ):
        return _MOTO(environ, start_response)
    with _LOCK:
        return _MOTO(environ, start_response)


if __name__ == "__main__":
    run_simple(
        "127.0.0.1", int(sys.argv[1]), answer, threaded=True, request_handler=MotoRequestHandler
    )

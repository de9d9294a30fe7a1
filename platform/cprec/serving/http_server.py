"""Listens, and serves an ASGI application until a signal ends it."""

import socket

import uvicorn

from cluster.errors import RecipeError
from cprec.config.sections.recommendation import ServeSettings
from cprec.serving.access import App

BACKLOG = 2048
MAX_HEADER_BYTES = 1 << 16
"""Bytes of the headers of a request, at most."""


def listen(settings: ServeSettings) -> socket.socket:
    """Opens the socket, before anything is loaded.

    Raises:
        RecipeError: The address cannot be used.
    """
    address = (settings.host, settings.port)
    try:
        return socket.create_server(
            address, family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        )
    except OSError as error:
        raise RecipeError(
            f"serve.host {settings.host}, serve.port {settings.port}: cannot listen there: "
            f"{error.strerror}; give another address or port (0: any that is free)"
        ) from None


def build_server(app: App, settings: ServeSettings) -> uvicorn.Server:
    """Builds the server. SIGINT and SIGTERM let it answer what it was asked, and then end it."""
    config = uvicorn.Config(
        app,
        # It bounds the headers, which come before the token is known; httptools does not.
        http="h11",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(settings.timeout_s) + 1,
    )
    return uvicorn.Server(config)

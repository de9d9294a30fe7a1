"""Listens, and serves an ASGI application until a signal ends it."""

import socket
from typing import Protocol

import uvicorn

from cluster.errors import RecipeError
from cprec.serving.access import App

BACKLOG = 2048
MAX_HEADER_BYTES = 1 << 16
"""Bytes of the headers of a request, at most."""


class Address(Protocol):
    """Where to listen: a section of the recipe."""

    @property
    def host(self) -> str:
        """Address of an interface."""

    @property
    def port(self) -> int:
        """Port; 0: any that is free."""


def listen(settings: Address, section: str) -> socket.socket:
    """Opens the socket, before anything is loaded.

    Args:
        settings: Where to listen.
        section: Name of the section, for the message.

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
            f"{section}.host {settings.host}, {section}.port {settings.port}: cannot listen there: "
            f"{error.strerror}; give another address or port (0: any that is free)"
        ) from None


def build_server(app: App, grace_s: int) -> uvicorn.Server:
    """Builds the server. SIGINT and SIGTERM let it answer what it was asked, and then end it.

    Args:
        app: The application.
        grace_s: Time for which it answers what it was asked (seconds), at most.
    """
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
        timeout_graceful_shutdown=grace_s,
    )
    return uvicorn.Server(config)


def describe_address(listener: socket.socket) -> str:
    """Returns the URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

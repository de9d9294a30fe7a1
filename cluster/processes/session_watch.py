"""Watches the Ray processes that a driver cannot do without, and ends it truthfully if one dies.

Ray itself ends such a driver with exit code 1 and no message: at once where it touches the object
store, which the raylet holds, and after a minute without the GCS. No exception and no exit handler
comes before that. So a thread holds a connection to each of the two, is told by the operating
system when it closes, and ends the process first.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray

from cluster.errors import FAULT, INTERRUPTED
from cluster.processes.interruption import message_if_interrupted

RECONNECT_S = 10.0
"""Seconds after which a quiet connection is replaced: a machine that is lost closes none."""

RETRY_S = 0.5
"""Seconds between two tries to connect."""

RESTART_S = 45.0
"""Seconds for which a cluster's GCS may be away, because it may be started again.

Ray gives up after 60 seconds.
"""


@dataclass(frozen=True)
class Service:
    """A Ray process that listens on a port.

    Attributes:
        name: What it is, as the message of its death calls it.
        host: Address that it listens on.
        port: Port that it listens on.
        log: Its log file, which the message names.
        may_restart: Whether it may be started again, so that a closed port is not yet its death.
    """

    name: str
    host: str
    port: int
    log: str
    may_restart: bool = False


@contextmanager
def end_with_session(session: Any, is_local: bool) -> Iterator[None]:
    """Ends this process with exit code 2 if its Ray session dies while a `with` block runs.

    Args:
        session: What `ray.init` returned.
        is_local: Whether this process started the session, so that nobody restarts its GCS.
    """
    address_info = getattr(session, "address_info", None)
    if address_info is None:  # through `ray://` the processes of the session are out of reach
        yield
        return
    with watch(find_services(address_info["session_dir"], is_local), _end_process):
        yield


def find_services(session_folder: str, is_local: bool) -> list[Service]:
    """Returns the processes that the driver of the connected session depends on."""
    context = ray.get_runtime_context()
    gcs_host, _, gcs_port = context.gcs_address.rpartition(":")
    logs = os.path.join(session_folder, "logs")
    services = [
        Service(
            "the GCS, the head process of Ray,",
            gcs_host.strip("[]"),
            int(gcs_port),
            os.path.join(logs, "gcs_server.out"),
            may_restart=not is_local,
        )
    ]
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            log = os.path.join(logs, "raylet.out")
            services.append(Service("the raylet, Ray's process on this node,", address, port, log))
    return services


@contextmanager
def watch(services: list[Service], on_death: Callable[[Service], None]) -> Iterator[None]:
    """Watches processes in threads while a `with` block runs.

    Args:
        services: The processes; one that cannot be reached from here is not watched.
        on_death: Called by a thread once a process has died.
    """
    stop = threading.Event()
    for service in services:
        with suppress(OSError):
            connection = _connect(service)
            arguments = (service, connection, stop, on_death)
            threading.Thread(target=_watch_until, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _watch_until(
    service: Service,
    connection: socket.socket,
    stop: threading.Event,
    on_death: Callable[[Service], None],
) -> None:
    """Watches a process until it dies or nobody wants to know any more."""
    while not stop.is_set():
        with connection:
            _wait_for_end(connection, RECONNECT_S)
        reconnected = _reconnect(service, stop)
        if reconnected is None:
            if not stop.is_set():
                on_death(service)
            return
        connection = reconnected


def _wait_for_end(connection: socket.socket, seconds: float) -> None:
    """Waits until a connection was closed by its other end, at most for some time."""
    deadline = time.monotonic() + seconds
    with suppress(OSError):  # reset: closed as well
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([connection], [], [], left)
            if readable and not connection.recv(1 << 12):
                return


def _reconnect(service: Service, stop: threading.Event) -> socket.socket | None:
    """Connects again; None if the process is dead."""
    deadline = time.monotonic() + RESTART_S
    while not stop.is_set():
        try:
            return _connect(service)
        except ConnectionRefusedError:  # nobody listens
            if not service.may_restart or time.monotonic() > deadline:
                return None
        except (TimeoutError, ConnectionError):  # its machine may be gone, or only be slow
            if time.monotonic() > deadline:
                return None
        except OSError:  # this process has no file handle left, say: that tells nothing
            deadline = time.monotonic() + RESTART_S
        stop.wait(RETRY_S)
    return None


def _connect(service: Service) -> socket.socket:
    return socket.create_connection((service.host, service.port), timeout=RETRY_S * 10)


def _end_process(service: Service) -> None:
    """Writes to stderr what died, and exits with code 2 without touching Ray again.

    If a signal ended the driver and Ray's processes together, it ends as an interrupted one.
    """
    interrupted = message_if_interrupted()
    message = interrupted or (
        f"fault: {service.name} died, and its session with it (its log: {service.log}); often the "
        "machine was out of memory or disk; give the same command again"
    )
    with suppress(OSError):
        os.write(2, f"{message}\n".encode())  # a stream of Python may be locked by another thread
    os._exit(INTERRUPTED if interrupted else FAULT)

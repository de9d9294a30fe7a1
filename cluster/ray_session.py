"""The Ray session of a job: the cluster it was submitted to, or a local one that ends with it.

On a cluster, Ray ships the platform's code to the workers as `py_modules`, which are hashed by
content and so never stale. Driver and workers run the same code, and nothing is installed on the
nodes. The processes of a local session find it on their path.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import ray
from ray._private import ray_constants, services
from ray._private.node import Node

from cluster.errors import PlatformFault, RunError, UserError
from cluster.processes.ray_threads import is_ray_in_use
from cluster.processes.session_watch import end_with_session

SOURCE_ROOT = Path(__file__).resolve().parent.parent
"""The folder of `cluster` and `corpus`; `cprec` is in `platform/` here, in a wheel beside them."""


Session = TypeVar("Session")

LOOPBACK = "127.0.0.1"

START_S = 300.0
"""How long the raylet of a local session may take to start."""

START_IS_SLOW = "timed out during startup"
"""What Ray says if its own processes are not up in time."""

PORT_WAIT = "RAY_gcs_server_port_wait_time_s"
"""How long Ray waits for a head of its own (s), and how often it tries to reach another one."""

HEAD_TRIES = 2
"""How often a driver tries to reach the head of a cluster, for 40 seconds each time."""

UNASKED = ("start_monitor", "start_log_monitor", "start_api_server")
"""What Ray starts of processes that nobody asks in a local session: the autoscaler, what sends logs
to drivers, and the server of the dashboard."""

KEPT_S = 7 * 24 * 3600.0
"""How long the folder of a local session stays after the session's end (seconds)."""

SESSIONS_ROOT = Path("/tmp")  # noqa: S108  what is below it is checked
"""Where each user has a folder for local sessions."""


def package_folders() -> list[str]:
    """Returns the folders of the packages that every worker needs."""
    cprec = SOURCE_ROOT / "platform" / "cprec"
    return [
        str(path)
        for path in (
            cprec if cprec.is_dir() else SOURCE_ROOT / "cprec",
            SOURCE_ROOT / "corpus",
            SOURCE_ROOT / "cluster",
        )
    ]


def resolve_address(address: str) -> str:
    """Returns the address to pass to `ray.init`.

    `auto` means the cluster of `ray job submit`, which sets RAY_ADDRESS, or else a local session.
    It never connects to a cluster that just happens to run on this machine.
    """
    if address == "auto":
        return "auto" if os.environ.get("RAY_ADDRESS") else "local"
    return address


@contextmanager
def ray_session(address: str, num_cpus: int) -> Iterator[None]:
    """Connects to Ray for the duration of a `with` block; an existing connection is left alone.

    If Ray dies meanwhile, the process ends with exit code 2 (`cluster.processes.session_watch`).
    Where a thread still uses Ray at the end, it stays connected (`cluster.processes.ray_threads`).

    Args:
        address: `auto`, `local` or the address of a cluster; see `resolve_address`.
        num_cpus: Logical CPUs of a local session, which may exceed the cores; ignored on a cluster.
    """
    if ray.is_initialized():
        yield
        return
    resolved = resolve_address(address)
    is_local = resolved == "local"
    sessions = private_folder() / "ray" if is_local else None
    if sessions is not None:
        remove_old_sessions(sessions)
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_local:
        # A local machine is not preempted, so the watcher's process is not needed.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if is_local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Without a token in the environment, Ray writes ~/.ray/auth_token, which turns
        # authentication on in every later `ray start` of this user. RAY_AUTH_MODE is not set here:
        # parts of Ray read it when they are imported, which has already happened.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    start = partial(
        ray.init,
        address=resolved,
        num_cpus=num_cpus if is_local else None,
        include_dashboard=False if is_local else None,
        log_to_driver=False,
        configure_logging=True,
        logging_level=logging.ERROR,
        runtime_env=None if is_local else {"py_modules": package_folders()},
        _system_config=_local_system_config(num_cpus) if is_local else None,
        _temp_dir=None if sessions is None else str(sessions),
        _node_ip_address=LOOPBACK if is_local else None,
    )
    with preserve_sigterm_handler(), local_processes() if is_local else nullcontext():
        session = start_patiently(start) if is_local else connect(start)
    try:
        with end_with_session(session, is_local):
            yield
    finally:
        if not is_ray_in_use():
            ray.shutdown()


@contextmanager
def replaced(owner: object, **attributes: object) -> Iterator[None]:
    """Gives a module or class of Ray other attributes while a `with` block runs.

    Args:
        owner: The module or class, which has all of them.
        attributes: The values by name.
    """
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def local_processes() -> Iterator[None]:
    """Lets the processes of a session that starts in the `with` block find our packages.

    They inherit the path, and listen on the loopback interface only. With `py_modules`, each of
    them would be started twice, and would compile a copy of the packages. What nobody asks there is
    not started (docs/decisions/038-cheap-starts.md).
    """
    before = os.environ.get("PYTHONPATH")
    roots = dict.fromkeys(str(Path(folder).parent) for folder in package_folders())
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *filter(None, [before])])
    try:
        with loopback_only(), without_unasked():
            yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def without_unasked() -> Iterator[None]:
    """Lets a session that starts in the `with` block do without the processes of UNASKED.

    They are a third of what a start costs, and Ray has no option for it.
    """
    with replaced(Node, **dict.fromkeys(UNASKED, _start_nothing)):
        yield


def _start_nothing(node: Node, **_: object) -> None:
    """Takes the place of a method of Ray's that starts a process."""


def start_patiently(start: Callable[[], Session]) -> Session:
    """Starts a local session, and waits for its node as long as a busy machine needs.

    Ray itself waits 30 seconds, a number in its code, and leaves the processes that were too slow.

    Args:
        start: Starts Ray.

    Raises:
        RunError: The node was not up within START_S seconds.
    """
    os.environ.setdefault(PORT_WAIT, f"{START_S:.0f}")
    try:
        with replaced(services, get_node=partial(_wait_for_node, services.get_node)):
            return start()
    except Exception as error:  # Ray has no class for this one
        if START_IS_SLOW not in str(error):
            raise
        raise RunError(
            f"Ray did not start on this machine within {START_S:.0f} seconds: its load is "
            f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} logical CPUs; start again when it does "
            "less"
        ) from error


def _wait_for_node(
    find_node: Callable[[str, str], dict[str, object]], head: str, node_id: str
) -> dict[str, object]:
    """Returns what Ray's `find_node` returns, once it knows the node.

    Raises:
        RuntimeError: It did not know it within START_S seconds.
    """
    end = time.monotonic() + START_S
    while True:
        try:
            return find_node(head, node_id)
        except RuntimeError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def connect(start: Callable[[], Session]) -> Session:
    """Connects to a cluster. Ray by itself would try for a quarter of an hour.

    Args:
        start: Connects to Ray.

    Raises:
        PlatformFault: No head answered.
    """
    is_chosen = PORT_WAIT in os.environ
    os.environ.setdefault(PORT_WAIT, str(HEAD_TRIES))
    try:
        return start()
    except ConnectionError as error:
        raise PlatformFault(
            f"{error}: no head answered there; see cluster.address or RAY_ADDRESS, whether the "
            "head is up, and the rules for its port (docs/operations/network.md)"
        ) from None
    finally:
        if not is_chosen:
            del os.environ[PORT_WAIT]


@contextmanager
def loopback_only() -> Iterator[None]:
    """Lets a session that starts in the `with` block, and its workers, listen on loopback only.

    Ray replaces a loopback address by the machine's own wherever it may form clusters. Whether it
    may is read from the environment when Ray is imported, so Ray's constant is set instead. What
    listens nevertheless: docs/operations/network.md.
    """
    interfaces = {name for _, name in socket.if_nameindex()}
    if name := next((name for name in ("lo", "lo0") if name in interfaces), None):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)  # the workers inherit it
    with replaced(ray_constants, ENABLE_RAY_CLUSTER=False):
        yield


def private_folder() -> Path:
    """Returns a folder that only this user can enter, below which local sessions have theirs.

    Ray makes its own folders, with sockets, logs and spilled data, writable for everybody. The
    path is short, because that of a socket has at most 107 bytes.
    """
    folder = SESSIONS_ROOT / f"cprec-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{folder}: not a folder of this user, who needs it; move it away")
    folder.chmod(0o700)
    return folder


def remove_old_sessions(folder: Path) -> None:
    """Removes what local sessions left of logs and spilled data, KEPT_S after they ended.

    Ray removes nothing. A session that runs writes to its logs every few seconds.
    """
    for session in folder.glob("session_2*"):
        with suppress(OSError):  # another process removes it too
            written = max(path.stat().st_mtime for path in [session, *session.glob("logs/*")])
            if time.time() - written > KEPT_S:
                shutil.rmtree(session, ignore_errors=True)


@contextmanager
def preserve_sigterm_handler() -> Iterator[None]:
    """Restores the SIGTERM handler that `ray.init` replaces with one that exits the process.

    A SIGTERM that reaches Ray's handler inside the `with` block becomes KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # outside the main thread, Ray does not replace the handler
        return
    previous_handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as system_exit:
        if system_exit.code != signal.SIGTERM:  # Ray's handler exits with the number of the signal
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _local_system_config(num_cpus: int) -> dict[str, object]:
    """Returns Ray's internal settings for a local session.

    Idle workers are kept between two segments of training, because a new worker imports for
    seconds. No worker is started ahead of the first task: there would be one for each CPU, whether
    or not the job has a task for it.
    """
    return {
        "num_workers_soft_limit": 8 * num_cpus,
        "worker_maximum_startup_concurrency": 2 * num_cpus,
        "prestart_worker_first_driver": False,
    }

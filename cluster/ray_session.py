"""The Ray session of a job: the cluster that it was submitted to, or a local one that ends with it.

The platform's code travels as `py_modules` (content-hashed, so never stale): driver and workers run the same code, nothing is installed on the nodes.
"""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

SOURCE_ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `cluster`, `corpus` and, below `platform`, `cprec`; in an installed wheel `cprec` lies beside them."""


def package_folders() -> list[str]:
    """The package folders that every worker needs."""
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
    """`auto` is the cluster of `ray job submit` (RAY_ADDRESS is set there), else a local session: never a cluster that merely runs nearby."""
    if address == "auto":
        return "auto" if os.environ.get("RAY_ADDRESS") else "local"
    return address


@contextmanager
def ray_session(address: str, num_cpus: int) -> Iterator[None]:
    """A connected Ray for the time of a `with` block; one that is connected already is used and left as it is.

    num_cpus: logical CPUs of a local session (they may exceed the cores); ignored on a cluster.
    """
    if ray.is_initialized():
        yield
        return
    where = resolve_address(address)
    local = where == "local"
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:
        os.environ.setdefault(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
        )  # nobody takes this machine away: spare its process
    if local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # A token of this process: without one, Ray writes ~/.ray/auth_token, which turns authentication on in every later `ray start` of this user.
        # RAY_AUTH_MODE stays as it is: set after `import ray`, half of Ray would not see it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with preserve_sigterm_handler():
        ray.init(
            address=where,
            num_cpus=num_cpus if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": package_folders()},
            _system_config=_local_system_config(num_cpus) if local else None,
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def preserve_sigterm_handler() -> Iterator[None]:
    """What SIGTERM does stays what it was: `ray.init` makes it end the process with its number as exit code. Meanwhile it is KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():  # there Ray leaves it alone too
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _local_system_config(num_cpus: int) -> dict[str, object]:
    """Settings of a local Ray. Workers that wait between two segments stay, because a new one imports for seconds; and none is started ahead of the
    first task, because it could not run our code, for which Ray starts workers of their own."""
    return {
        "num_workers_soft_limit": 8 * num_cpus,
        "worker_maximum_startup_concurrency": 2 * num_cpus,
        "prestart_worker_first_driver": False,
    }

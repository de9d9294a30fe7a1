"""A job that is watched from outside while it runs: its sockets, its Ray session, its output.

Its environment holds a secret wherever users keep one.
"""

import base64
import os
import stat
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.ray_session import private_folder
from tests.integration import jobs

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA" + "PLANTED0" * 2,
    "AWS_SECRET_ACCESS_KEY": "pl4nted/aws+secret=key",
    "AWS_SESSION_TOKEN": "pl4nted/aws+session=token",
    "HF_TOKEN": "hf_pl4ntedhubtoken000000000000",
    "MLFLOW_TRACKING_USERNAME": "pl4nted-mlflow-user",
    "MLFLOW_TRACKING_PASSWORD": "pl4nted:mlflow/password",
    "MLFLOW_TRACKING_TOKEN": "pl4nted-mlflow-token",
    "MLFLOW_TRACKING_URI": "https://someone:pl4nted-uri-password@mlflow.invalid",
    "PGPASSWORD": "pl4nted-postgres-password",
    "RAY_AUTH_TOKEN": "9140ed" * 10,
}
"""Variables of the environment that hold secrets."""
MIN_FILES = 5
"""Files that a folder has at least in which secrets are looked for."""


@dataclass(frozen=True)
class ObservedRun:
    """What a job showed of itself while it ran.

    Attributes:
        stdout: Its output.
        stderr: Its messages.
        session: Folder of its local Ray session.
        listeners: Titles that a process had, and each address and port on which it listened.
        command_lines: Command lines of its processes.
    """

    stdout: str
    stderr: str
    session: Path
    listeners: list[tuple[set[str], set[tuple[str, int]]]]
    command_lines: set[str]


def observe(job: str, *arguments: str | Path) -> ObservedRun:
    """Runs a job to its end, with planted secrets, and looks at its processes meanwhile."""
    titles: dict[int, set[str]] = defaultdict(set)
    addresses: dict[int, set[tuple[str, int]]] = defaultdict(set)
    command_lines: set[str] = set()
    earlier = sessions()
    process = jobs.start(job, *arguments, environment=SECRETS)
    end = time.monotonic() + jobs.LIMIT_S
    try:
        while process.poll() is None and time.monotonic() < end:
            with suppress(psutil.NoSuchProcess):
                driver = psutil.Process(process.pid)
                for member in [driver, *driver.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        title = " ".join(member.cmdline())
                        command_lines.add(title)
                        titles[member.pid].add(title.rstrip())
                        for connection in member.net_connections(kind="tcp"):
                            if connection.status == psutil.CONN_LISTEN:
                                addresses[member.pid].add(tuple(connection.laddr))
            time.sleep(0.5)
    finally:
        process.kill()
    stdout, stderr = process.communicate()
    assert process.returncode == 0, f"{stdout[-3000:]}\n{stderr[-3000:]}"
    session = session_of(process.pid, earlier)
    listeners = [(titles[pid], listened) for pid, listened in addresses.items()]
    return ObservedRun(stdout, stderr, session, listeners, command_lines)


def sessions() -> set[Path]:
    """Returns the folders of all local Ray sessions so far."""
    return set((private_folder() / "ray").glob("session_*"))


def session_of(pid: int, earlier: set[Path]) -> Path:
    """Returns the folder of the local Ray session of a process that has ended.

    Args:
        pid: Its number, which an earlier process may have had.
        earlier: The folders that were there before it started.
    """
    [session] = [path for path in sessions() - earlier if path.name.endswith(f"_{pid}")]
    return session


def spellings(secret: str) -> Iterator[bytes]:
    """Yields a secret as text holds it: plain, quoted for a URL, or in base64 at any offset."""
    yield secret.encode()
    yield urllib.parse.quote(secret, safe="").encode()
    yield urllib.parse.quote(secret).encode()
    for offset in range(3):
        encoded = base64.b64encode(b"x" * offset + secret.encode())
        yield encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4]


def find_secrets(folder: Path) -> set[tuple[str, str]]:
    """Returns which file below a folder holds which secret, as path and variable."""
    found, files_read = set(), 0
    # Another test may train beside it, and replace or remove files and folders meanwhile.
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.is_symlink() or not path.is_file():
                continue
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            files_read += 1
            for variable, secret in SECRETS.items():
                if any(spelling in content for spelling in spellings(secret)):
                    found.add((str(path), variable))
    assert files_read >= MIN_FILES, f"{folder}: {files_read} files, so this says little"
    return found


def is_private(path: Path) -> bool:
    """Returns whether a folder above a path lets only its owner, who is this user, enter."""
    return any(
        parent.stat().st_uid == os.getuid() and not stat.S_IMODE(parent.stat().st_mode) & 0o077
        for parent in path.parents
    )

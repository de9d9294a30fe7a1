"""Which Ray a job connects to, which code it ships, and what SIGTERM does while Ray starts.

No test here starts Ray.
"""

import os
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from ray._private import ray_constants, services
from ray._private.node import Node

from cluster import ray_session
from cluster.errors import PlatformFault, RunError, UserError


def test_auto_is_the_cluster_of_the_submitted_job_else_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_session.resolve_address("auto") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_session.resolve_address("auto") == "auto"


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379", "ray://head:10001"])
def test_a_named_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_session.resolve_address(address) == address


def test_workers_get_the_three_packages() -> None:
    folders = [Path(folder) for folder in ray_session.package_folders()]
    assert {folder.name for folder in folders} == {"cprec", "corpus", "cluster"}
    assert all((folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_processes_of_a_local_session_find_the_packages_first(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    with suppress(KeyboardInterrupt), ray_session.local_processes():
        roots = os.environ["PYTHONPATH"].split(os.pathsep)
        raise KeyboardInterrupt
    assert os.environ.get("PYTHONPATH") == before
    assert roots[2:] == ([] if before is None else [before])
    for name in ("cprec", "corpus", "cluster"):
        assert any((Path(root) / name / "__init__.py").is_file() for root in roots[:2])


@pytest.mark.parametrize("chosen", [None, "9"])
def test_a_head_that_does_not_answer_is_a_fault_after_few_tries(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    monkeypatch.delenv(ray_session.PORT_WAIT, raising=False)
    if chosen is not None:
        monkeypatch.setenv(ray_session.PORT_WAIT, chosen)
    tries = []

    def start() -> None:
        tries.append(os.environ[ray_session.PORT_WAIT])
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    with pytest.raises(PlatformFault, match=r"10\.0\.0\.1:6379: no head .*RAY_ADDRESS"):
        ray_session.connect(start)
    assert tries == [chosen or "2"]
    assert os.environ.get(ray_session.PORT_WAIT) == chosen


def imitate_ray_init(sigterm_arrives: bool) -> None:
    """Replaces the SIGTERM handler as `ray.init` does, and may receive the signal meanwhile."""
    with ray_session.preserve_sigterm_handler():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        if sigterm_arrives:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)


def test_sigterm_handler_is_restored_after_ray_replaced_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    imitate_ray_init(sigterm_arrives=False)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_while_ray_starts_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        imitate_ray_init(sigterm_arrives=True)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_folder_of_local_sessions_is_closed_to_others_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "SESSIONS_ROOT", tmp_path)
    folder = ray_session.private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert ray_session.private_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_folders_of_sessions_that_ended_long_ago_are_removed(tmp_path: Path) -> None:
    """Whether a session runs is seen by its logs; the folder itself does not change."""
    long_ago = time.time() - 2 * ray_session.KEPT_S
    for name, log_time in [("ended", long_ago), ("runs", time.time())]:
        logs = tmp_path / f"session_2026-11-29_04-12-41_601041_{name}" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text("")
        os.utime(logs / "raylet.out", (log_time, log_time))
        os.utime(logs.parent, (long_ago, long_ago))
    (tmp_path / "session_latest").symlink_to(logs.parent)
    ray_session.remove_old_sessions(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "session_2026-11-29_04-12-41_601041_runs",
        "session_latest",
    ]


@pytest.mark.parametrize("kind", ["file", "link", "link to nowhere", "somebody else's"])
def test_a_folder_that_is_not_the_users_own_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "SESSIONS_ROOT", tmp_path)
    (tmp_path / "other").mkdir()
    folder = tmp_path / f"cprec-{os.getuid()}"
    if kind == "file":
        folder.write_text("")
    elif kind == "link":
        folder.symlink_to(tmp_path / "other")
    elif kind == "link to nowhere":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        folder.mkdir()
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
        folder.rename(tmp_path / f"cprec-{user + 1}")
    with pytest.raises(UserError, match="not a folder of this user"):
        ray_session.private_folder()


def test_clusters_may_be_formed_again_after_a_local_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    before = ray_constants.ENABLE_RAY_CLUSTER
    with suppress(KeyboardInterrupt), ray_session.loopback_only():
        assert not ray_constants.ENABLE_RAY_CLUSTER
        raise KeyboardInterrupt
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_ray_starts_all_its_processes_again_after_a_local_session() -> None:
    before = [getattr(Node, name) for name in ray_session.UNASKED]
    with suppress(KeyboardInterrupt), ray_session.without_unasked():
        assert all(getattr(Node, name) not in before for name in ray_session.UNASKED)
        raise KeyboardInterrupt
    assert [getattr(Node, name) for name in ray_session.UNASKED] == before


TOO_SLOW = "The current node timed out during startup. This could happen because ..."
"""What Ray raises when it no longer waits for its node."""


def test_a_local_session_waits_for_its_node_longer_than_ray_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[dict[str, str] | None] = [None, None, {"node_id": "7"}]

    def find_node(head: str, node_id: str) -> dict[str, str]:
        assert (head, node_id) == ("head:1", "7")
        if found := answers.pop(0):
            return found
        raise RuntimeError("no such node yet")

    monkeypatch.setattr(services, "get_node", find_node)
    found = ray_session.start_patiently(lambda: services.get_node("head:1", "7"))
    assert found == {"node_id": "7"}
    assert services.get_node is find_node


def test_a_node_that_stays_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_node(_head: str, _node_id: str) -> dict[str, str]:
        raise RuntimeError("no such node yet")

    def start() -> None:
        try:
            services.get_node("head:1", "7")
        except RuntimeError as error:
            raise Exception(TOO_SLOW) from error

    monkeypatch.setattr(services, "get_node", find_node)
    monkeypatch.setattr(ray_session, "START_S", 0.3)
    with pytest.raises(RunError, match="within 0 seconds: its load is"):
        ray_session.start_patiently(start)
    assert services.get_node is find_node


def test_another_failure_of_a_local_start_is_raised_as_it_is() -> None:
    def start() -> None:
        raise ValueError("another cause")

    with pytest.raises(ValueError, match="another cause"):
        ray_session.start_patiently(start)

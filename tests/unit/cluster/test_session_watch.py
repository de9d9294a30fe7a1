"""A process that a driver depends on dies: the driver says so, and ends with exit code 2.

Services here are child processes that listen; real Ray sessions are killed in tests/faults.
"""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.errors import FAULT, INTERRUPTED
from cluster.processes import session_watch
from cluster.processes.session_watch import Service, watch

LISTEN = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(server.getsockname()[1], flush=True)
accepted = []
while True:
    accepted.append(server.accept()[0])
    if "closes" in sys.argv:
        accepted.pop().close()
"""

WAIT_S = 30


def start(port: int = 0, *flags: str) -> "tuple[subprocess.Popen[str], Service]":
    """Starts a process that listens; with the flag `closes` it closes each connection."""
    command = [sys.executable, "-c", LISTEN, str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Service("the service", "127.0.0.1", int(process.stdout.readline()), "its.log")


def end(process: "subprocess.Popen[str]") -> None:
    with process:  # waits for it
        process.kill()


@pytest.fixture
def listening() -> "Iterator[tuple[subprocess.Popen[str], Service]]":
    process, service = start()
    yield process, service
    end(process)


def test_a_death_is_noticed_at_once(
    listening: "tuple[subprocess.Popen[str], Service]",
) -> None:
    process, service = listening
    dead: list[Service] = []
    noticed = threading.Event()

    def on_death(service: Service) -> None:
        dead.append(service)
        noticed.set()

    with watch([service], on_death):
        assert not noticed.wait(0.5)
        process.kill()
        assert noticed.wait(WAIT_S)
    assert dead == [service]


def test_a_death_after_the_end_of_the_session_is_nobodys_business(
    listening: "tuple[subprocess.Popen[str], Service]",
) -> None:
    process, service = listening
    noticed = threading.Event()
    with watch([service], lambda _: noticed.set()):
        pass
    end(process)
    assert not noticed.wait(1)


def test_a_closed_connection_is_no_death() -> None:
    process, service = start(0, "closes")
    noticed = threading.Event()
    try:
        with watch([service], lambda _: noticed.set()):
            assert not noticed.wait(1)
            process.kill()
            assert noticed.wait(WAIT_S)
    finally:
        end(process)


def test_a_gcs_that_is_started_again_in_time_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    process, service = start()
    again = None
    restartable = Service(service.name, service.host, service.port, service.log, may_restart=True)
    noticed = threading.Event()
    try:
        with watch([restartable], lambda _: noticed.set()):
            end(process)
            again, _ = start(service.port)
            assert not noticed.wait(2)
            monkeypatch.setattr(session_watch, "RESTART_S", 0.5)
            again.kill()
            assert noticed.wait(WAIT_S)
    finally:
        end(process)
        if again is not None:
            end(again)


def test_a_service_that_cannot_be_reached_at_the_start_is_not_watched() -> None:
    noticed = threading.Event()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # it does not listen, and nobody else can meanwhile
        nobody = Service("nobody", "127.0.0.1", bound.getsockname()[1], "")
        with watch([nobody], lambda _: noticed.set()):
            assert not noticed.wait(1)


DRIVER = """
import signal, sys
from cluster.processes.interruption import noting_signals
from cluster.processes.session_watch import Service, _end_process, watch
raylet = Service("the raylet", "127.0.0.1", int(sys.argv[1]), "raylet.out")
signal.signal(signal.SIGTERM, lambda *_: None)  # as if the main thread did not come to it
with noting_signals("interrupted; what then"), watch([raylet], _end_process):
    print("ready", flush=True)
    while True:
        sum(range(10_000))
"""


def start_driver(service: Service) -> "subprocess.Popen[str]":
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(service.port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    return driver


def test_the_process_ends_with_2_and_says_what_died_and_what_to_do(
    listening: "tuple[subprocess.Popen[str], Service]",
) -> None:
    process, service = listening
    driver = start_driver(service)
    process.kill()
    _, err = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == FAULT == 2
    assert err.startswith("fault: the raylet died")
    assert "raylet.out" in err
    assert "give the same command again" in err


def test_a_signal_to_the_driver_and_to_ray_is_an_interruption(
    listening: "tuple[subprocess.Popen[str], Service]",
) -> None:
    process, service = listening
    driver = start_driver(service)
    driver.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # Ray's processes take longer to end than the driver to be told
    process.kill()
    _, err = driver.communicate(timeout=WAIT_S)
    assert (driver.returncode, err) == (INTERRUPTED, "interrupted; what then\n")

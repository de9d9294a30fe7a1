"""A local run listens on loopback, keeps its session private, and stores no secret."""

from pathlib import Path

from tests.integration.observed_run import (
    SECRETS,
    ObservedRun,
    find_secrets,
    is_private,
    spellings,
)

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
RENDEZVOUS = "ray::RayTrainWorker"
"""Torch's TCPStore listens on all interfaces: torch has no option for its address."""


def test_a_local_run_listens_on_loopback_but_for_torchs_rendezvous(observed: ObservedRun) -> None:
    assert len(observed.listeners) > 5
    wide = {title for title, address in observed.listeners if address not in LOOPBACK}
    assert all(title.startswith(RENDEZVOUS) for title in wide), wide


def test_the_session_is_the_users_alone(observed: ObservedRun) -> None:
    assert observed.session.is_dir()
    assert is_private(observed.session)
    longest = observed.session / "sockets" / "plasma_store"
    assert len(str(longest)) < 107


def test_no_file_of_a_run_or_its_session_holds_a_secret(observed: ObservedRun, place: Path) -> None:
    assert list(observed.session.glob("logs/*"))
    assert find_secrets(place) | find_secrets(observed.session) == set()


def test_no_message_and_no_command_line_holds_a_secret(observed: ObservedRun) -> None:
    shown = "\n".join([observed.stdout, observed.stderr, *observed.command_lines]).encode()
    assert [
        name
        for name, secret in SECRETS.items()
        if any(spelling in shown for spelling in spellings(secret))
    ] == []


def test_the_scan_finds_a_secret_however_it_is_written(tmp_path: Path) -> None:
    for name, secret in SECRETS.items():
        for number, spelling in enumerate(spellings(secret)):
            file = tmp_path / f"{name}-{number}"
            file.write_bytes(b"before " + spelling + b" after")
            assert (str(file), name) in find_secrets(tmp_path)

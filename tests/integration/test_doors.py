"""A local run listens on loopback, keeps its session private, and stores no secret.

The console shows it to whoever has the token.
"""

import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import boto3
import pytest

from tests.faults.injection import environment, fault
from tests.integration import jobs
from tests.integration.observed_run import (
    SECRETS,
    ObservedRun,
    find_secrets,
    is_private,
    session_of,
    sessions,
    spellings,
)
from tests.integration.runs.test_failing_s3 import set_faults

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
RENDEZVOUS = "ray::RayTrainWorker"
"""Torch's TCPStore listens on all interfaces: torch has no option for its address."""


def test_a_local_run_listens_on_loopback_but_for_torchs_rendezvous(observed: ObservedRun) -> None:
    assert len(observed.listeners) > 5
    wide = [
        (titles, address)
        for titles, addresses in observed.listeners
        for address in addresses
        if address[0] not in LOOPBACK
    ]
    # Only rank 0 has one. A worker has another title while it executes what it was sent.
    assert len(wide) <= 1, wide
    assert all(any(title.startswith(RENDEZVOUS) for title in titles) for titles, _ in wide), wide


def test_a_local_run_starts_nothing_that_nobody_asks(observed: ObservedRun) -> None:
    assert any("raylet" in line for line in observed.command_lines)
    for script in ("dashboard/dashboard.py", "log_monitor.py", "_private/monitor.py"):
        assert not any(script in line for line in observed.command_lines), script


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


def test_a_console_shows_a_real_run_to_whoever_has_the_token(place: Path, whole: Path) -> None:
    with jobs.console(place / "recipe.yaml") as (url, _):
        with pytest.raises(HTTPError) as refused:
            urllib.request.urlopen(f"{url}/api/runs", timeout=jobs.LIMIT_S)
        assert refused.value.code == 401
        refused.value.close()
        request = urllib.request.Request(
            f"{url}/api/runs/{whole.name}",
            headers={"Authorization": f"Bearer {jobs.CONSOLE_TOKEN}"},
        )
        parts: dict[str, Any] = {}
        with urllib.request.urlopen(request, timeout=jobs.LIMIT_S) as stream:
            while "problem" not in parts:
                line = stream.readline()
                if line.startswith(b"data: "):
                    part = json.loads(line[6:])
                    parts[part["name"]] = part["content"]
    assert parts["head"]["row"]["state"] == "done"
    assert parts["audit"]["is_final"]
    assert (parts["audit"]["missing"], parts["audit"]["repeated"]) == (0, 0)
    assert parts["series"]["samples"][-1] == parts["schedule"]["annealing_end"]
    assert parts["problem"] is None


def test_a_run_on_a_store_that_takes_its_rights_away_writes_no_secret(
    s3: str, s3_endpoint: str, tmp_path: Path
) -> None:
    """A run on S3 and a job that fails, in one: what it had written, and what it said."""
    recipe = jobs.recipe(
        tmp_path,
        storage=f"{s3}/runs",
        workers=1,
        mlflow={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        checkpoint={"every_samples": 32},
    )
    variables = SECRETS | {"AWS_ENDPOINT_URL": s3_endpoint}
    built = jobs.run("build_corpus", recipe, environment=variables)
    gate = tmp_path / "gate"
    wait = environment({**fault("wait", 2, gate), "rank": 0})
    earlier = sessions()
    process = jobs.start("cpt", recipe, environment=variables | wait)
    bucket = s3.removeprefix("s3://")
    client = boto3.client("s3", endpoint_url=s3_endpoint)

    def keys() -> list[str]:
        found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return [entry["Key"] for entry in found]

    jobs.wait_for(process, lambda: any(key.endswith("manifest.json") for key in keys()))
    try:
        set_faults(s3_endpoint, "403", 10_000)
        gate.touch()
        out, err = process.communicate(timeout=jobs.LIMIT_S)
    finally:
        set_faults(s3_endpoint)
    assert process.returncode in (1, 2), err
    assert f"{s3}/runs" in err
    assert "runs/small/resolved.yaml" in keys()
    for number, key in enumerate(keys()):
        client.download_file(bucket, key, str(tmp_path / f"object-{number}"))
    (tmp_path / "said.txt").write_text(built.stdout + built.stderr + out + err)
    assert find_secrets(tmp_path) | find_secrets(session_of(process.pid, earlier)) == set()


def test_the_scan_finds_a_secret_however_it_is_written(tmp_path: Path) -> None:
    written = set()
    for name, secret in SECRETS.items():
        for number, spelling in enumerate(spellings(secret)):
            file = tmp_path / f"{name}-{number}"
            file.write_bytes(b"before " + spelling + b" after")
            written.add((str(file), name))
    assert find_secrets(tmp_path) >= written


def test_a_scan_of_next_to_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("one file")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AssertionError, match="says little"):
            find_secrets(folder)

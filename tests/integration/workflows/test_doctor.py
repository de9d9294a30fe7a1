"""The doctor on real services: a store that is well, one that denies, one that never answers."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe
from cprec.workflows.doctor.examination import plan_checks
from cprec.workflows.doctor.findings import Check, run_checks
from cprec.workflows.doctor.ray_checks import check_ray
from cprec.workflows.doctor.storage_checks import check_commits, check_storage
from tests.integration import jobs
from tests.integration.runs.test_failing_s3 import set_faults


def keys(s3: str, endpoint: str) -> list[str]:
    """Returns what is in a bucket."""
    client = boto3.client("s3", endpoint_url=endpoint)
    found = client.list_objects_v2(Bucket=s3.removeprefix("s3://")).get("Contents", [])
    return [entry["Key"] for entry in found]


@pytest.fixture
def denying(s3_endpoint: str) -> Iterator[str]:
    """An S3 server that denies everything."""
    set_faults(s3_endpoint, "403", 10_000)
    yield s3_endpoint
    set_faults(s3_endpoint)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


def test_a_whole_place_is_well_and_empty_afterwards(
    s3: str, s3_endpoint: str, tmp_path: Path
) -> None:
    """The job as a person runs it, on a store and on a local Ray session."""
    recipe = jobs.recipe(
        tmp_path,
        storage=f"{s3}/runs",
        corpus=f"{s3}/corpus",
        mlflow={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    process = jobs.run("doctor", recipe, "--json")
    report = json.loads(process.stdout)
    found = {finding["check"]: finding["status"] for finding in report["findings"]}
    assert report["status"] in ("ok", "warn")
    assert found.pop("ray: nodes") in ("ok", "warn")  # it may have fewer cores than workers
    assert {name for name, status in found.items() if status == "ok"} >= {
        "storage: rights",
        "storage: conditions",
        "corpus: commits",
        "corpus",
        "base",
        "mlflow: registry",
        "ray: token",
        "ray: versions",
        "ray: clocks",
    }
    assert found["ray: all-reduce (gloo)"] in ("ok", "warn")
    assert keys(s3, s3_endpoint) == []
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}


def test_a_store_that_denies_fails_storage_and_only_warns_of_the_corpus(
    s3: str, denying: str
) -> None:
    checks = [
        Check("storage", lambda: check_storage(f"{s3}/runs"), 120),
        Check("corpus: commits", lambda: check_commits(f"{s3}/corpus"), 120),
    ]
    report = run_checks(checks, lambda line: None)
    assert [(f.check, f.status) for f in report.findings] == [
        ("storage", "fail"),
        ("corpus: commits", "warn"),
    ]
    assert f"{s3}/runs" in report.findings[0].seen
    assert "no access" in report.findings[0].seen


def test_a_bucket_that_is_not_there_is_a_failure(s3: str) -> None:
    check = Check("storage", lambda: check_storage(f"{s3}-nowhere/runs"), 120)
    report = run_checks([check], lambda line: None)
    assert [finding.status for finding in report.findings] == ["fail"]
    assert not report.faults


def test_a_store_that_never_answers_does_not_keep_the_other_checks(
    tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    recipe: Recipe = load_recipe(
        str(
            jobs.recipe(
                tmp_path,
                storage="s3://silent/runs",
                mlflow={"uri": f"http://127.0.0.1:{silent_port}"},
            )
        )
    )
    checks = {check.name: check for check in plan_checks(recipe)}
    limits = {"storage": 1.0, "mlflow: registry": 1.0, "corpus: commits": 120, "disk": 120}
    report = run_checks(
        [Check(name, checks[name].look, limit) for name, limit in limits.items()],
        lambda line: None,
    )
    found = {finding.check: finding.status for finding in report.findings}
    assert found["storage"] == found["mlflow: registry"] == "fail"
    assert found["corpus: commits"] == "ok"
    assert found["disk: temporary files"] in ("ok", "warn")


def test_a_head_that_does_not_answer_is_a_failure_and_ends_nobody(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # it does not listen, and nobody else can meanwhile
        port = bound.getsockname()[1]
        path = jobs.recipe(tmp_path, cluster={"address": f"127.0.0.1:{port}"})
        [finding] = check_ray(load_recipe(str(path)))
    assert (finding.check, finding.status) == ("ray: head", "fail")
    assert f"127.0.0.1:{port}" in finding.seen

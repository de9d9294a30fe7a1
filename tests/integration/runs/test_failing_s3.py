"""An object store that fails for a moment, at every request of a run and of a commit."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from botocore.retries.standard import ExponentialBackoff

from cluster import storage_errors
from cluster.errors import AccessDeniedError
from cluster.storage import create_text, join, read_text, remove, write_text
from corpus.append_text import append_text
from corpus.build import build
from corpus.store import delta
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.runs.control import liveness
from cprec.runs.json_lines import read_trace
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import create_run_plan
from tests.small_run import planned_rows, train, without_ray
from tests.unit.corpus.worlds import settings, shop, write_root

Fail = Callable[..., int]

PASSING = ["503", "reset", "lost", "cut"]
"""Faults that pass."""


def set_faults(endpoint: str, kind: str = "", times: int = 1) -> int:
    """Chooses what fails of the S3 server; returns how many requests have failed before."""
    body = json.dumps({"kind": kind, "times": times}).encode()
    request = urllib.request.Request(f"{endpoint}/-/faults", body, method="PUT")
    with urllib.request.urlopen(request) as reply:
        return int(reply.read())


@pytest.fixture
def fail(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fail]:
    """A function that makes each request fail some times; returns how many failed before."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.01)
    monkeypatch.setattr(storage_errors, "CUT_READ_PAUSE_S", 0.01)
    monkeypatch.setattr(delta, "COMMIT_PAUSE_S", 0.01)

    yield partial(set_faults, s3_endpoint)
    set_faults(s3_endpoint)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    place = tmp_path_factory.mktemp("corpus")
    root = write_root(place / "root", shop(("A", "B", "C")))
    return build(settings(root), 0, str(place / "corpus"), print)


@pytest.mark.parametrize("kind", PASSING)
def test_a_run_whose_every_request_fails_once_ends_as_if_none_had(
    s3: str, fail: Fail, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    without_ray(monkeypatch)
    monkeypatch.setattr(liveness, "RENEWAL_S", 1000.0)
    run = join(s3, "run")
    fail(kind)
    report = train(run, corpus)
    assert fail() > (10 if kind == "cut" else 50)
    assert (report.missing, report.repeated) == (0, 0)
    expected = create_run_plan(Recipe(), corpus)
    rows = [row.model_copy(update={"lease": 1}) for row in planned_rows(expected.plan)]
    assert read_trace(run) == rows
    run_plan = RunPlan.read(run)
    assert run_plan is not None
    assert replace(run_plan, lease=0) == expected


def test_three_times_503_is_waited_for(s3: str, fail: Fail) -> None:
    uri = join(s3, "a.txt")
    fail("503", 3)
    write_text(uri, "a")
    assert read_text(uri) == "a"
    assert fail() >= 6


def test_a_slow_answer_is_waited_for(s3: str, fail: Fail) -> None:
    uri = join(s3, "a.txt")
    fail("slow")
    write_text(uri, "a")
    assert read_text(uri) == "a"
    assert fail() >= 2


def test_what_is_created_is_ours_although_the_answer_was_lost(s3: str, fail: Fail) -> None:
    uri = join(s3, "lease.json")
    fail("lost")
    assert create_text(uri, "mine")
    fail()
    assert not create_text(uri, "another's")
    fail("lost")
    remove(uri)
    remove(uri)


def test_403_fails_at_once_and_names_the_place(s3: str, fail: Fail) -> None:
    uri = join(s3, "a.txt")
    write_text(uri, "a")
    fail("403", 1000)
    with pytest.raises(AccessDeniedError, match=f"{uri}: no access"):
        write_text(uri, "b")
    with pytest.raises(AccessDeniedError, match=f"{uri}: no access"):
        read_text(uri)
    assert fail() <= 3  # one attempt each; a client may ask for the size of a file first


def test_a_store_that_stays_away_is_an_error_that_names_the_place(s3: str, fail: Fail) -> None:
    uri = join(s3, "a.txt")
    for kind in ("503", "reset"):
        fail(kind, 1000)
        with pytest.raises(OSError, match=uri):
            write_text(uri, "a")


@pytest.mark.parametrize("kind", PASSING)
def test_a_build_and_an_append_land_once_although_every_request_fails_once(
    s3: str,
    fail: Fail,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
) -> None:
    place = tmp_path_factory.mktemp("raw")
    root = write_root(place / "root", shop(("A", "B", "C")))
    (place / "days.txt").write_text("The wind came from the west. " * 50)
    expected = build(settings(root), 0, str(place / "corpus"), print)
    fail(kind)
    lines: list[str] = []
    built = build(settings(root), 0, join(s3, "corpus"), lines.append)
    appended = append_text(str(place / "days.txt"), built.uri, lines.append)
    assert fail() > 5
    assert (built.version, appended.version) == (0, 1)
    assert len(appended.commits) == 2
    rows = {(s.source, s.version): s.rows for s in built.streams()}
    assert rows == {(s.source, s.version): s.rows for s in expected.streams()}
    assert not any("starts again" in line or "already" in line for line in lines)

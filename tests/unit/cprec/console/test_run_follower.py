"""A run that is followed has all its parts, and what is new of its files is not missed."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RunError
from corpus.build import build
from corpus.store.tables import Corpus
from cprec.console import run_follower
from cprec.console.run_follower import RunFollower
from cprec.console.views.commands import Commands
from tests import small_run
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    place = tmp_path_factory.mktemp("corpus")
    root = write_root(place / "root", shop(("A", "B", "C")))
    return build(settings(root), 0, str(place / "corpus"), print)


@pytest.fixture
def storage(tmp_path: Path, corpus: Corpus) -> Path:
    """A storage with one finished run, and what else lies beside runs."""
    with pytest.MonkeyPatch.context() as patch:
        small_run.without_ray(patch)
        small_run.train(str(tmp_path / "runs" / "done"), corpus)
    (tmp_path / "runs" / "mlflow.db").write_bytes(b"")
    (tmp_path / "runs" / "bases").mkdir()
    return tmp_path / "runs"


def parts(follower: RunFollower) -> dict[str, Any]:
    return {name: json.loads(content) for name, content in follower.look().items()}


def test_a_run_that_is_followed_has_all_its_parts(storage: Path) -> None:
    follower = RunFollower(str(storage), "done", Commands(("my.yaml",)))
    page = parts(follower)
    assert set(page) == {
        *("head", "schedule", "timeline", "checkpoints", "perplexity", "series", "audit")
    }
    assert page["audit"]["is_final"]
    assert page["audit"]["missing"] == 0
    assert page["series"]["samples"][-1] == page["schedule"]["annealing_end"]
    assert page["timeline"][0]["samples"] > 0
    assert parts(follower) == page
    with (storage / "done" / "events.jsonl").open("a") as file:
        file.write('{"event": "held", "samples": 1, "time": 2.0, "by": "console (Ada)"}\n')
    assert parts(follower)["timeline"][0]["by"] == "console (Ada)"
    with (storage / "done" / "events.jsonl").open("a") as file:
        file.write('{"event": []}\n{"event": "held", "samples": 1, "time": 3.0, "by": "Bob"}\n')
    assert parts(follower)["timeline"][0]["by"] == "Bob"  # whatever lies before it


def test_what_a_look_that_failed_had_read_is_shown_by_the_next(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = RunFollower(str(storage), "done", Commands(("my.yaml",)))
    before = parts(follower)
    with (storage / "done" / "events.jsonl").open("a") as file:
        file.write('{"event": "held", "samples": 1, "time": 2.0, "by": "LAST"}\n')

    def fail(uri: str) -> list[str]:
        raise OSError(5, "Input/output error", uri)

    with monkeypatch.context() as broken:
        broken.setattr(run_follower, "list_names", fail)
        with pytest.raises(OSError, match="Input/output error"):
            follower.look()
    after = parts(follower)
    assert after["timeline"][0]["by"] == "LAST"
    assert len(after["timeline"]) == len(before["timeline"]) + 1


def test_a_branch_starts_from_stable_checkpoints_only(storage: Path) -> None:
    follower = RunFollower(str(storage), "done", Commands(("my.yaml",)))
    [entry] = parts(follower)["checkpoints"]
    assert not entry["checkpoint"]["is_stable"]
    assert (entry["anneal"], entry["resume"]) == (None, None)


def test_a_run_that_is_not_there_is_named(storage: Path) -> None:
    with pytest.raises(RunError, match="no run nowhere below this storage"):
        RunFollower(str(storage), "nowhere", Commands(())).look()

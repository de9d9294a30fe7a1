"""Decisions of the gate among the events of a run: one writer at a time."""

from pathlib import Path
from typing import cast

import pytest

from cprec.evaluation.gate import Decision
from cprec.runs.control.lease import claim
from cprec.runs.control.liveness import read_lease
from cprec.runs.events import PromotionDecided, RunFinished
from cprec.runs.json_lines import open_events, read_events
from cprec.tracking.registry import Registry, Version
from cprec.workflows.champion import record_decision

DECISION = Decision(True, "better")


class Tags:
    """A registry with one version, of which nothing but its tags is kept."""

    def __init__(self, run: Path) -> None:
        checkpoint = str(run / "checkpoints" / "000000000032-0")
        self._version = Version("cprec", 1, checkpoint, None, {})
        self.tags: dict[str, str] = {}

    def version(self, number: int) -> Version:
        return self._version

    def set_tags(self, number: int, tags: dict[str, str]) -> None:
        self.tags |= tags


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path / "runs" / "small"
    with claim(str(folder), "small", "the corpus", print) as held:
        events = open_events(str(folder), held.lease)
        events.append(RunFinished(samples=32, checkpoint="the last one"))
        events.flush()
    return folder


def decide(run: Path) -> Tags:
    registry = Tags(run)
    record_decision(cast(Registry, registry), 1, DECISION)
    return registry


def test_a_decision_is_written_under_a_lease_of_its_own(run: Path) -> None:
    decide(run)
    decide(run)
    recorded = [e for e in read_events(str(run)) if isinstance(e, PromotionDecided)]
    assert [(e.samples, e.version, e.lease) for e in recorded] == [(32, 1, 2), (32, 1, 3)]
    lease = read_lease(str(run))
    assert lease is not None
    assert (lease.number, lease.run, lease.corpus, lease.ended) == (3, "small", "the corpus", True)


def test_while_a_driver_holds_the_run_the_tag_has_to_suffice(run: Path) -> None:
    with claim(str(run), "small", "the corpus", print):
        before = {file: file.read_bytes() for file in run.rglob("*.jsonl")}
        assert len(decide(run).tags) == 1
        assert {file: file.read_bytes() for file in run.rglob("*.jsonl")} == before

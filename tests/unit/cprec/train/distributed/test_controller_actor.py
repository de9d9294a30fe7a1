"""The controller's shell without Ray: what is not on storage did not happen."""

from pathlib import Path

import pytest

from cluster.errors import PlatformFault
from corpus.append import append
from corpus.build import build
from corpus.sampling.source import SourceKind
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.runs import run_plan
from cprec.runs.status import current_owner
from cprec.stream import segments
from cprec.stream.row_encoder import RowEncoder
from cprec.stream.token_sharing import NO_SHARING
from cprec.train.distributed.controller_actor import ControllerActor
from cprec.train.distributed.controller_state import ControllerSettings, WorkerGroup
from tests.records import trace_row
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C")))),
        0,
        str(tmp_path / "corpus"),
        print,
    )


@pytest.fixture
def shell(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> ControllerActor:
    """Of a run that has begun, but for what only read tasks need: titles in Ray's object store, settings of Ray Data."""
    monkeypatch.setattr(segments, "configure_ray_data", lambda: None)
    monkeypatch.setattr(RowEncoder, "from_corpus", lambda *_: None)
    run = str(tmp_path / "runs" / "trunk")
    run_plan.open_run_plan(Recipe(), run, corpus)
    return ControllerActor(
        ControllerSettings(
            "trunk", run, corpus.uri, "base", None, 512, NO_SHARING, 32, 64, 64, None, 0.0
        ),
        current_owner(),
    )


def fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next writing of plan.json fails."""
    write, left = run_plan.RunPlan.write, [1]

    def once(course: run_plan.RunPlan, run_uri: str) -> None:
        if left.pop() if left else 0:
            raise OSError("no room on the device")
        write(course, run_uri)

    monkeypatch.setattr(run_plan.RunPlan, "write", once)


def test_a_version_whose_adoption_could_not_be_written_is_adopted_once(
    shell: ControllerActor, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    before = shell.plan()
    grown = append(
        settings(write_root(tmp_path / "more", shop(("D",), seed=5)), domains=("D",), held_out=()),
        0,
        corpus.uri,
        print,
    )
    fail_once(monkeypatch)
    with pytest.raises(OSError, match="no room"):
        shell._handle_request("look")
    assert shell.plan() == before
    assert "takes up corpus version 1" in shell._handle_request("look")
    counts = shell.plan().count_by_stream(0, shell.plan().total_samples)
    assert counts == {
        (s.source, s.version): s.rows
        for s in grown.streams()
        if s.source.kind is not SourceKind.DOWNSTREAM
    }
    written = run_plan.RunPlan.read(str(tmp_path / "runs" / "trunk"))
    assert written is not None
    assert (written.plan, written.version) == (shell.plan(), 1)


@pytest.mark.parametrize("verb", ["anneal", "hold"])
def test_a_request_that_could_not_be_written_can_be_made_again(
    shell: ControllerActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    shell.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    before = shell.plan()
    fail_once(monkeypatch)
    with pytest.raises(OSError, match="no room"):
        shell._handle_request(verb)  # type: ignore[arg-type]
    assert shell.plan() == before
    assert "anneals from sample 32 on" in shell._handle_request("anneal")
    written = run_plan.RunPlan.read(str(tmp_path / "runs" / "trunk"))
    assert written is not None
    assert (written.plan, written.closed, written.hold) == (shell.plan(), True, False)


def test_a_controller_that_was_started_again_between_two_steps_sends_the_workers_back(
    shell: ControllerActor,
) -> None:
    for call in (
        lambda: shell.record_step(trace_row()),
        lambda: shell.record_perplexity(0, 1.0),
        shell.prepare_checkpoint,
    ):
        with pytest.raises(PlatformFault, match="go on from the last checkpoint"):
            call()

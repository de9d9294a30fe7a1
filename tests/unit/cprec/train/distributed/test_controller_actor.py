"""The controller actor, without Ray: what is not on storage did not happen."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import DataError, PlatformFault, RunError
from corpus.append import append
from corpus.append_text import append_text
from corpus.build import build
from corpus.sampling.source import SourceKind
from corpus.store.tables import Corpus, Stream
from cprec.config.recipe import Recipe
from cprec.config.sections.pretraining import TrainSettings
from cprec.encode.tokens import too_long_error
from cprec.runs import run_plan
from cprec.runs.control import request_queue
from cprec.runs.control.fence import RunWriter
from cprec.runs.control.lease import LeaseLostError, claim
from cprec.runs.control.request_queue import Action, Request
from cprec.runs.control.status import read_status
from cprec.runs.events import (
    CorpusVersionAdopted,
    RecordDropped,
    RequestRefused,
    StorageFailed,
    WorkersFailed,
)
from cprec.runs.json_lines import read_events, read_trace
from cprec.runs.locks.recipe import write_recipe
from cprec.runs.records import LeaseRecord
from cprec.runs.run_planning import create_run_plan
from cprec.stream import segments
from cprec.stream.row_encoder import RowEncoder
from cprec.train.distributed import corpus_follower
from cprec.train.distributed.controller_actor import ControllerActor
from cprec.train.distributed.controller_state import ControllerSettings, WorkerGroup
from cprec.train.distributed.request_server import MAX_EVENTS
from cprec.workflows import append_domain
from tests.records import trace_row
from tests.small_run import NO_TITLES
from tests.unit.corpus.worlds import settings, shop, write_root
from tests.unit.failing_disk import FOREVER, FailingDisk


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C")))),
        0,
        str(tmp_path / "corpus"),
        print,
    )


@pytest.fixture
def actor(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ControllerActor]:
    """Returns the controller actor of a run whose plan is written.

    It lacks what only read tasks need: titles in Ray's object store, and settings of Ray Data.
    """
    monkeypatch.setattr(segments, "configure_ray_data", lambda: None)
    monkeypatch.setattr(RowEncoder, "with_titles_of", lambda encoder, _: encoder)
    monkeypatch.setattr(corpus_follower, "require_streams_fit", lambda encoder, streams: None)
    run = str(tmp_path / "runs" / "trunk")
    create_run_plan(Recipe(), corpus).write(run)
    with claim(run, "trunk", corpus.uri, print) as held:
        yield ControllerActor(
            ControllerSettings("trunk", run, corpus.uri, NO_TITLES, 32, 64, 64, None, 0.0, 0.05),
            held.lease,
        )


def ask(actor: ControllerActor, action: Action) -> str:
    """Lets the controller carry out a request, and returns the answer."""
    return actor._requests.handle(Request("somebody", action))


def fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the next write of plan.json fail."""
    write = run_plan.RunPlan.write
    failures = [OSError("no room on the device")]

    def write_or_fail(plan: run_plan.RunPlan, run_uri: str, writer: RunWriter) -> None:
        if failures:
            raise failures.pop()
        write(plan, run_uri, writer)

    monkeypatch.setattr(run_plan.RunPlan, "write", write_or_fail)


def test_a_version_whose_adoption_could_not_be_written_is_adopted_once(
    actor: ControllerActor, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    before = actor.plan()
    corpus_with_d = append(
        settings(write_root(tmp_path / "more", shop(("D",), seed=5)), domains=("D",), held_out=()),
        0,
        corpus.uri,
        print,
    )
    fail_once(monkeypatch)
    with pytest.raises(OSError, match="no room"):
        ask(actor, "look")
    assert actor.plan() == before
    assert "takes up corpus version 1" in ask(actor, "look")
    counts = actor.plan().count_by_stream(0, actor.plan().total_samples)
    assert counts == {
        (s.source, s.version): s.rows
        for s in corpus_with_d.streams()
        if s.source.kind is not SourceKind.DOWNSTREAM
    }
    written = run_plan.RunPlan.read(str(tmp_path / "runs" / "trunk"))
    assert written is not None
    assert (written.plan, written.version) == (actor.plan(), 1)


def test_a_version_whose_prompts_never_fit_is_refused_and_the_run_goes_on(
    actor: ControllerActor, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    before, looked_at = actor.plan(), []

    def refuse(encoder: RowEncoder, streams: list[Stream]) -> None:
        looked_at.append({(s.source, s.version) for s in streams})
        raise too_long_error("the longest of 3 prompts", 600, 512)

    monkeypatch.setattr(corpus_follower, "require_streams_fit", refuse)
    more = settings(
        write_root(tmp_path / "more", shop(("D",), seed=5)), domains=("D",), held_out=()
    )
    appended = append(more, 0, corpus.uri, print)
    for _ in range(2):
        answer = ask(actor, "look")
        assert "does not take up corpus version 1, and goes on without it" in answer
        assert "600 tokens" in answer
        assert "--allow-change model.max_tokens" in answer
    joining = {
        (s.source, s.version)
        for s in appended.streams()
        if s.version == 1 and s.source.kind is not SourceKind.DOWNSTREAM
    }
    # Looked at once, and not again at every look.
    assert looked_at == [joining]
    assert actor.plan() == before
    written = run_plan.RunPlan.read(str(tmp_path / "runs" / "trunk"))
    assert written is not None
    assert written.version == 0
    monkeypatch.setattr(segments, "stream_segment", lambda *given: [None])
    assert actor.issue_segment(0, 0, 0) is not None


def test_a_version_whose_titles_forbid_sharing_is_refused_and_a_restart_goes_on_without_it(
    actor: ControllerActor, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(encoder: RowEncoder, version: Corpus) -> RowEncoder:
        if version.version:
            raise DataError("samples share tokens only where prompts can be cut at titles")
        return encoder

    monkeypatch.setattr(RowEncoder, "with_titles_of", refuse)
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    more = settings(
        write_root(tmp_path / "more", shop(("D",), seed=5)), domains=("D",), held_out=()
    )
    append(more, 0, corpus.uri, print)
    for _ in range(2):
        answer = ask(actor, "look")
        assert "does not take up corpus version 1, and goes on without it" in answer
        assert "samples share tokens only" in answer
    restarted = corpus_follower.CorpusFollower(actor._state)
    assert {version for _, version in restarted.streams} == {0}


def test_titles_that_make_a_run_slower_are_told(
    actor: ControllerActor, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(encoder: RowEncoder, version: Corpus) -> RowEncoder:
        return replace(encoder, fallback_reason="the title 'x' is odd")

    monkeypatch.setattr(RowEncoder, "with_titles_of", slower)
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    for number, domain in enumerate("DE"):
        root = write_root(tmp_path / domain, shop((domain,), seed=5))
        append(settings(root, domains=(domain,), held_out=()), 0, corpus.uri, print)
        told = "one by one, which is slower: the title 'x' is odd" in ask(actor, "look")
        assert told is (number == 0)


@pytest.mark.parametrize("action", ["anneal", "hold"])
def test_a_request_that_could_not_be_written_can_be_made_again(
    actor: ControllerActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Action
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    before = actor.plan()
    fail_once(monkeypatch)
    with pytest.raises(OSError, match="no room"):
        ask(actor, action)
    assert actor.plan() == before
    assert "anneals from sample 32 on" in ask(actor, "anneal")
    written = run_plan.RunPlan.read(str(tmp_path / "runs" / "trunk"))
    assert written is not None
    assert (written.plan, written.closed, written.hold) == (actor.plan(), True, False)


def test_a_controller_that_was_started_again_between_two_steps_sends_the_workers_back(
    actor: ControllerActor,
) -> None:
    for call in (
        lambda: actor.record_step(0, trace_row()),
        lambda: actor.record_perplexity(0, 0, 1.0),
        lambda: actor.prepare_checkpoint(0),
    ):
        with pytest.raises(PlatformFault, match="go on from the last checkpoint"):
            call()


def test_workers_that_wake_up_when_another_group_trains_record_nothing(
    actor: ControllerActor, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "trunk"
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    actor.begin_attempt(WorkerGroup(1, 1, 0, None), [])
    actor.record_step(1, trace_row(batch_samples=32))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for call in (
        lambda: actor.record_step(0, trace_row(step=1, samples=32, batch_samples=32)),
        lambda: actor.record_perplexity(0, 0, 1.0),
        lambda: actor.prepare_checkpoint(0),
        lambda: actor.record_checkpoint(0, 32, "c"),
        lambda: actor.begin_attempt(WorkerGroup(0, 1, 0, None), []),
    ):
        with pytest.raises(PlatformFault, match="attempt 0 is over: the workers of attempt 1"):
            call()
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    actor.prepare_checkpoint(1)
    assert [row.step for row in read_trace(str(run))] == [0]


def test_what_failed_workers_said_is_recorded_with_those_that_said_nothing(
    actor: ControllerActor, tmp_path: Path
) -> None:
    actor.begin_attempt(WorkerGroup(0, 3, 0, None), [])
    actor.record_fault(0, 2, "RuntimeError: timed out")
    actor.record_fault(0, 0, "RuntimeError: closed")
    actor.begin_attempt(WorkerGroup(1, 2, 0, None), [])
    actor.record_fault(0, 1, "of a group that is over")
    actor.begin_attempt(WorkerGroup(2, 2, 0, None), [])
    actor.record_fault(2, 0, "the last error")
    actor.end_run()
    events = read_events(str(tmp_path / "runs" / "trunk"))
    failed = [e for e in events if isinstance(e, WorkersFailed)]
    assert [(e.attempt, e.because, e.silent) for e in failed] == [
        (0, "rank 0: RuntimeError: closed; rank 2: RuntimeError: timed out", [1]),
        (2, "rank 0: the last error", [1]),
    ]


def test_a_damaged_step_after_the_checkpoint_is_trained_again(
    actor: ControllerActor, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "trunk"
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    for step in range(2):
        actor.record_step(0, trace_row(step=step, samples=32 * step, batch_samples=32))
    actor.end_run()
    with (run / "trace.jsonl").open("a") as file:
        file.write('{"step":2,"sam{"step":3}\n')
    again = ControllerActor(actor._state.settings, actor._state.lease)
    again.begin_attempt(WorkerGroup(1, 1, 64, "the checkpoint"), [])
    assert [row.samples for row in read_trace(str(run))] == [0, 32]
    (dropped,) = [e for e in read_events(str(run)) if isinstance(e, RecordDropped)]
    assert "trace.jsonl: line 3 was not a record" in dropped.because


def test_a_run_whose_trace_lacks_steps_before_the_checkpoint_does_not_go_on(
    actor: ControllerActor,
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    actor.record_step(0, trace_row(batch_samples=32))
    with pytest.raises(RunError, match=r"no step that begins at 32 samples.* checkpoint is at 64"):
        actor.begin_attempt(WorkerGroup(1, 1, 64, "the checkpoint"), [])


def test_a_capped_run_says_what_it_trains_of_a_version_that_joins(
    tmp_path: Path, corpus: Corpus, actor: ControllerActor
) -> None:
    settings_capped = replace(actor._state.settings, max_domain_samples=40)
    run = Path(settings_capped.run_uri)
    (run / "plan.json").unlink()
    recipe = Recipe(
        storage=str(run.parent), run="trunk", corpus=corpus.uri, train=TrainSettings(max_samples=40)
    )
    write_recipe(recipe, str(run))
    create_run_plan(recipe, corpus).write(str(run))
    capped = ControllerActor(settings_capped, actor._state.lease)
    capped.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    before = capped.plan()
    lines: list[str] = []
    broken = run.parent / "broken"
    create_run_plan(recipe, corpus).write(str(broken))
    (broken / "resolved.yaml").write_text("a_key_of_a_later_release: 1\n")
    more = settings(
        write_root(tmp_path / "more", shop(("D",), seed=5)), domains=("D",), held_out=()
    )
    append_recipe = recipe.model_copy(update={"data": more})
    append_domain.preview_append(append_recipe, None, False, lines.append)
    assert "broken: what the append means for it is not known" in lines[-2]
    assert "trunk keeps to its train.max_samples (40)" in lines[-1]
    append_domain.append_to_corpus(append_recipe, None, False, lines.append)
    answer = ask(capped, "look")
    assert "domain-specific samples are planned, because what joins shares" in answer
    assert capped.plan().wsa.stable_end == 40
    assert capped.plan().annealing_samples >= before.annealing_samples
    (joined,) = [
        e for e in read_events(str(run)) if isinstance(e, CorpusVersionAdopted) and e.version == 1
    ]
    planned = capped.plan().count_by_stream(0, capped.plan().total_samples)
    assert joined.sources["domain/D"] == planned["domain/D", 1]


def test_the_status_of_a_run_that_waits_says_what_can_be_done(
    actor: ControllerActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    ask(actor, "hold")
    state = actor._state
    assert state.status("training").waits_for is None
    state.advance(state.controller.plan.wsa.stable_end)
    state.workers_wait = True
    assert str(state.status("waiting").waits_for).endswith(": append a domain, or release it")
    monkeypatch.setattr(state, "settings", replace(state.settings, max_domain_samples=1))
    assert "train.max_samples (1) is used up" in str(state.status("waiting").waits_for)


def test_a_controller_whose_run_was_taken_over_writes_nothing(
    actor: ControllerActor, tmp_path: Path
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    run = tmp_path / "runs" / "trunk"
    owner = actor._state.lease.owner.model_copy(update={"pid": 7})
    record = LeaseRecord(number=2, owner=owner, run="trunk", corpus="c")
    (run / "leases" / "000002.json").write_text(json.dumps(record.to_json()))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for call in (
        lambda: actor.record_step(0, trace_row()),
        lambda: actor.heartbeat(force=True),
        lambda: ask(actor, "anneal"),
        lambda: ask(actor, "hold"),
        lambda: actor.record_perplexity(0, 0, 1.0),
        lambda: actor.record_checkpoint(0, 32, "c"),
        lambda: actor.begin_attempt(WorkerGroup(1, 1, 0, None), []),
        lambda: actor.prepare_checkpoint(0),
        actor.end_run,
    ):
        with pytest.raises(LeaseLostError, match="taken over by process 7"):
            call()
    actor.record_failure(RunError("anything"))
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def leave_request(actor: ControllerActor, name: str, content: str) -> Path:
    """Leaves a file among the requests of the controller's run."""
    folder = Path(actor._state.settings.run_uri) / "requests"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(content)
    return folder / f"{name}.json"


def answers(actor: ControllerActor) -> tuple[dict[str, str], list[str]]:
    """Returns the answers in the status of the controller's run, and the ids of refusals."""
    status = read_status(actor._state.settings.run_uri)
    assert status is not None
    return status.answers, status.refused


@pytest.mark.parametrize("verb", ['"relaese"', "7", "null", "[]", '"release "'])
def test_an_unknown_verb_releases_nothing(
    actor: ControllerActor, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_queue, "GRACE_S", 0.0)
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    leave_request(actor, "1", '{"do": "hold"}')
    leave_request(actor, "2", f'{{"do": {verb}}}')
    actor.heartbeat(force=True)
    assert actor._state.controller.hold
    given, refused = answers(actor)
    assert refused == ["2"]
    assert "ACTION one of look, hold, release, anneal" in given["2"]


def test_a_bad_request_is_named_in_the_events_and_the_others_are_served(
    actor: ControllerActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_queue, "GRACE_S", 0.0)
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    bad = [leave_request(actor, f"bad-{n}", "{garbage") for n in range(MAX_EVENTS + 5)]
    leave_request(actor, "good", '{"do": "hold"}')
    actor.heartbeat(force=True)
    assert actor._state.controller.hold
    assert not any(file.exists() for file in bad)
    events = read_events(actor._state.settings.run_uri)
    refusals = [event for event in events if isinstance(event, RequestRefused)]
    assert len(refusals) == MAX_EVENTS + 1
    assert "requests-refused" in refusals[0].because
    assert refusals[-1].because == "and 5 more at the same time"
    assert len(answers(actor)[0]) == len(bad) + 1


def test_hold_and_anneal_are_refused_while_the_run_anneals(actor: ControllerActor) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    actor._state.advance(actor.plan().wsa.stable_end + 32)
    leave_request(actor, "1", '{"do": "hold"}')
    leave_request(actor, "2", '{"do": "anneal"}')
    actor.heartbeat(force=True)
    given, refused = answers(actor)
    assert refused == ["1", "2"]
    assert all("is annealing, and finishes as planned" in text for text in given.values())
    events = read_events(actor._state.settings.run_uri)
    assert [e.request for e in events if isinstance(e, RequestRefused)] == ["1", "2"]


def test_a_controller_that_died_before_it_answered_does_not_anneal_twice(
    actor: ControllerActor,
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    first = actor._requests.handle(Request("asked", "anneal"))
    again = ControllerActor(actor._state.settings, actor._state.lease)
    again.begin_attempt(WorkerGroup(1, 1, 0, None), [])
    plan = again.plan()
    assert again._requests.handle(Request("asked", "anneal")) == first
    assert again._requests.handle(Request("another", "anneal")) == first
    assert again.plan() == plan
    again._state.advance(plan.wsa.stable_end + 32)
    assert again._requests.handle(Request("asked", "anneal")) == first
    with pytest.raises(RunError, match="is annealing, and finishes as planned"):
        again._requests.handle(Request("another", "anneal"))


def test_an_event_says_who_asked(actor: ControllerActor) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    asked: tuple[Action, ...] = ("hold", "release", "look", "anneal", "stop", "stop")
    for action in asked:
        actor._requests.handle(Request(action, action, "console (Ada)"))
    events = read_events(actor._state.settings.run_uri)
    senders = [(e.event, e.details()["by"]) for e in events if "by" in e.details()]
    names = ["held", "released", "version_announced", "annealing_called", "stopped"]
    assert senders == [(name, "console (Ada)") for name in names]


def test_a_request_to_stop_ends_the_run_as_an_interrupt_does(actor: ControllerActor) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    assert not actor.stop_requested()
    assert "saves a checkpoint and ends" in ask(actor, "stop")
    assert actor.stop_requested()
    assert actor.issue_segment(0, 0, 0) is None
    # One that Ray starts in its place still knows.
    again = ControllerActor(actor._state.settings, actor._state.lease)
    again.begin_attempt(WorkerGroup(1, 1, 0, None), [])
    assert again.stop_requested()
    assert again.issue_segment(1, 0, 0) is None


def test_news_are_those_of_steps_that_are_trained_again_too(actor: ControllerActor) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    reported = 0, 0
    seen = []
    for attempt, first, steps in ((0, 0, 5), (1, 2, 2), (1, 4, 3)):
        if attempt and first == 2:
            actor.begin_attempt(WorkerGroup(1, 1, 64, "the checkpoint at step 2"), [])
            news = actor.news(*reported)
            assert not news.rows
            reported = news.next_row, news.next_event
        for step in range(first, first + steps):
            actor.record_step(attempt, trace_row(step=step, samples=32 * step, batch_samples=32))
        news = actor.news(*reported)
        reported = news.next_row, news.next_event
        seen.append([row.step for row in news.rows])
    assert seen == [[0, 1, 2, 3, 4], [2, 3], [4, 5, 6]]
    assert not actor.news(*reported).events


def test_a_version_without_samples_to_train_is_named_to_whoever_asks_later(
    actor: ControllerActor, corpus: Corpus, tmp_path: Path
) -> None:
    """A run that waits looks at the corpus every second, so the question comes second."""
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    text = tmp_path / "text.txt"
    text.write_text("A text to replay.\n" * 50)
    append_text(str(text), corpus.uri, print)
    assert actor._corpus.check() == "has nothing to train of corpus version 1"
    assert ask(actor, "look") == "has nothing to train of corpus version 1"


def test_a_request_that_could_not_be_written_is_served_later(
    actor: ControllerActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    file = leave_request(actor, "1", '{"do": "hold"}')
    fail_once(monkeypatch)
    actor.heartbeat(force=True)
    assert not actor._state.controller.hold
    assert file.exists()
    actor.heartbeat(force=True)
    assert actor._state.controller.hold
    assert not file.exists()


def test_training_goes_on_while_storage_is_away(
    actor: ControllerActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "trunk"
    actor.begin_attempt(WorkerGroup(0, 1, 0, None), [])
    disk = FailingDisk(run, "full", fails_at=0, lasts=FOREVER)
    with disk.installed():
        for step in range(3):
            actor.record_step(0, trace_row(step=step, samples=32 * step, batch_samples=32))
            actor.heartbeat(force=True)
        with pytest.raises(OSError, match=f"make room there.*{run}"):
            actor.prepare_checkpoint(0)
    assert read_trace(str(run)) == []
    actor.heartbeat(force=True)
    assert [row.step for row in read_trace(str(run))] == [0, 1, 2]
    failures = [e for e in read_events(str(run)) if isinstance(e, StorageFailed)]
    assert len(failures) == 1
    assert str(run) in failures[0].because

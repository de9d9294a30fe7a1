"""A corpus and a run as a notebook sees them; the run is a small one without Ray and model."""

import json
from pathlib import Path

import polars as pl
import pytest

import cprec
from cluster.storage import write_text
from cprec.api import training
from cprec.api.background import BackgroundProcess
from cprec.api.frames import EVENTS, TRACE, events_frame, trace_frame
from cprec.runs.control.liveness import lease_uri
from cprec.runs.records import LeaseRecord, Owner
from tests import small_run
from tests.records import trace_row
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> cprec.Recipe:
    place = tmp_path_factory.mktemp("api")
    root = write_root(place / "root", shop(("A", "B", "C"), 30, 12), {})
    data = settings(root, domains=("A",), held_out=("B",), num_candidates=4)
    return cprec.Recipe(
        run="small",
        storage=place / "runs",
        corpus=place / "corpus",
        data=data.model_dump(mode="json"),
    )


@pytest.fixture(scope="module")
def corpus(recipe: cprec.Recipe) -> cprec.Corpus:
    return cprec.Corpus.build(recipe, say=lambda line: None)


@pytest.fixture(scope="module")
def run(recipe: cprec.Recipe, corpus: cprec.Corpus) -> cprec.Run:
    with pytest.MonkeyPatch.context() as patch:
        small_run.without_ray(patch)
        small_run.train(f"{recipe.storage}/small", corpus._stored)
    return cprec.Run(recipe)


def test_a_corpus_tells_what_it_has(corpus: cprec.Corpus, recipe: cprec.Recipe) -> None:
    assert (corpus.domains, corpus.held_out, corpus.version) == (["A"], ["B"], 0)
    assert repr(corpus) == f"<Corpus {recipe.corpus}, version 0: A, held out B>"
    assert corpus.statistics().select("domain", "held_out", "users").rows() == [
        ("A", False, 30),
        ("B", True, 30),
    ]
    assert len(corpus.items("A")) == 12
    assert set(corpus.items()["domain"]) == {"A", "B"}
    users = corpus.users("B")
    assert len(users) == 30
    history = corpus.history(users[0], "B")
    assert history.columns == ["item_id", "title"]
    assert set(history["item_id"]) <= set(corpus.items("B")["item_id"])


def test_a_domain_joins_as_the_next_version(corpus: cprec.Corpus, recipe: cprec.Recipe) -> None:
    said: list[str] = []
    appended = corpus.append(recipe, ["C"], say=said.append)
    assert (appended.version, appended.domains, corpus.domains) == (1, ["A", "C"], ["A"])
    assert "no run below" in said[-1]
    assert cprec.Corpus.open(corpus.uri, 0).domains == ["A"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c: c.items("Zoo"), "domain Zoo has no train samples; domains that have some: A, B"),
        (lambda c: c.users("Zoo"), "domain Zoo"),
        (lambda c: c.history("nobody", "A"), "user nobody: no user of A"),
        (lambda c: cprec.Corpus.open(c.uri, 9), "no version 9"),
        (lambda c: cprec.Corpus.open(f"{c.uri}-gone"), "no corpus here"),
    ],
)
def test_what_a_corpus_lacks_is_named(corpus: cprec.Corpus, ask: object, message: str) -> None:
    assert callable(ask)
    with pytest.raises(cprec.UserError, match=message):
        ask(corpus)


def test_a_run_tells_what_it_left(run: cprec.Run, recipe: cprec.Recipe) -> None:
    assert (run.name, run.state, run.report) == ("small", "done", None)
    assert run.audit is not None
    assert run.audit["missing"] == 0
    trace = run.trace()
    assert trace.schema == pl.Schema(TRACE)
    assert trace["samples"].to_list() == sorted(trace["samples"])
    assert run.events().schema == pl.Schema(EVENTS)
    assert run.events()["event"][0] == "run_started"
    checkpoints = run.checkpoints()
    assert checkpoints["samples"][-1] == trace["samples"][-1] + trace["batch_samples"][-1]
    assert Path(checkpoints["uri"][-1]).is_dir()
    assert run.recipe == cprec.Recipe()
    assert repr(run).startswith(f"<Run {recipe.storage}/small: done, 90 of 90 samples")
    assert [found.uri for found in cprec.Run.list(recipe.storage)] == [run.uri]
    assert run.wait() is run


def test_what_a_run_cannot_do_is_an_error(run: cprec.Run, recipe: cprec.Recipe) -> None:
    with pytest.raises(cprec.UserError, match="runs there: small"):
        cprec.Run(f"{recipe.storage}/smal")
    with pytest.raises(cprec.UserError, match="has finished"):
        run.hold()
    with pytest.raises(cprec.UserError, match="is not waiting, and will not be: done"):
        run.wait("waiting")


def test_frames_have_their_columns_without_a_row() -> None:
    assert trace_frame([]).schema == pl.Schema(TRACE)
    assert events_frame([]).schema == pl.Schema(EVENTS)
    assert TRACE["step"] == pl.Int64
    assert TRACE["grad_norm"] == pl.Float64
    one_step = trace_row(sources={"domain/A": 3}, objectives={"masked_item": 3})
    two = trace_frame([one_step, trace_row(sources={"mixed": 4})])
    assert two["objectives"].to_list() == [[{"objective": "masked_item", "count": 3}], None]
    assert two.select("sources").explode("sources").unnest("sources").rows() == [
        ("domain/A", 3),
        ("mixed", 4),
    ]


def test_a_start_that_its_process_refuses_says_why(recipe: cprec.Recipe) -> None:
    wrong = recipe.model_copy(update={"run": "new", "workers": 0})  # not checked here
    with pytest.raises(cprec.UserError, match="the recipe: 1 wrong value") as refused:
        cprec.start(wrong)
    assert "workers: " in str(refused.value)


def test_a_lease_of_an_earlier_process_with_the_same_number_is_no_start(
    recipe: cprec.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SameNumber(BackgroundProcess):
        pid = 4711

    earlier = LeaseRecord(
        number=1,
        owner=Owner(host="here", pid=SameNumber.pid, token="earlier"),
        run="again",
        corpus=recipe.corpus,
        ended=True,
    )
    write_text(lease_uri(f"{recipe.storage}/again", 1), json.dumps(earlier.to_json()))
    monkeypatch.setattr(training, "BackgroundProcess", SameNumber)
    wrong = recipe.model_copy(update={"run": "again", "workers": 0})
    with pytest.raises(cprec.UserError, match="the recipe: 1 wrong value"):
        cprec.start(wrong)

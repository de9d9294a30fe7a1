"""A run that has trained never begins again by itself, whatever of it is left."""

import shutil
from pathlib import Path

import pytest

from cluster.errors import RunError
from corpus.build import build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.runs import checkpoint
from cprec.runs.checkpoint import CheckpointName
from cprec.runs.events import CheckpointSaved, PhaseChanged, RunStarted
from cprec.runs.json_lines import open_events, open_trace
from cprec.runs.restart import find_last_checkpoint
from cprec.runs.run_planning import create_run_plan, resolve_run_plan
from cprec.schedule.ledger import Ledger
from cprec.schedule.wsa import Phase
from tests.records import trace_row
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    root = write_root(folder / "root", shop(("A", "B", "C")))
    return build(settings(root), 0, str(folder / "corpus"), print)


@pytest.fixture
def run(tmp_path: Path, corpus: Corpus) -> Path:
    """The folder of a finished run."""
    run = tmp_path / "runs" / "trunk"
    run_plan = create_run_plan(Recipe(), corpus)
    run_plan.write(str(run))
    files = tmp_path / "files"
    (files / "adapter").mkdir(parents=True)
    (files / "adapter" / "weights").write_text("")
    uri = checkpoint.checkpoint_uri(str(run), CheckpointName(64, 0))
    checkpoint.commit(files, uri, Ledger(run_plan.plan).add_step(64, 0))
    events, trace = open_events(str(run)), open_trace(str(run))
    events.append(RunStarted(samples=0, run="trunk", warmup_end=8, stable_end=32, annealing_end=64))
    events.append(
        PhaseChanged(samples=8, before=Phase.WARMUP, after=Phase.STABLE, because="of that")
    )
    events.append(CheckpointSaved(samples=64, checkpoint=uri))
    for step, phase in enumerate(("stable", "annealing")):
        trace.append(trace_row(step=step, samples=32 * step, batch_samples=32, phase=phase))
    events.flush()
    trace.flush()
    (run / "audit.json").write_text("{}")
    return run


SIGNS = {"events.jsonl", "audit.json", "trace.jsonl"}


@pytest.mark.parametrize("sign", sorted(SIGNS))
@pytest.mark.parametrize("lost", ["the manifests", "the checkpoints"])
def test_a_run_without_its_checkpoints_stops(run: Path, sign: str, lost: str) -> None:
    assert find_last_checkpoint(str(run)) == (CheckpointName(64, 0), [])
    if lost == "the checkpoints":
        shutil.rmtree(run / "checkpoints")
    else:
        next(run.glob("checkpoints/*/manifest.json")).unlink()
    for other in SIGNS - {sign}:
        (run / other).unlink()
    with pytest.raises(RunError, match=f"holds no complete checkpoint, but .*{sign}"):
        find_last_checkpoint(str(run))


@pytest.mark.parametrize("sign", [*sorted(SIGNS), "checkpoints"])
def test_a_run_without_its_plan_stops(run: Path, corpus: Corpus, sign: str) -> None:
    (run / "plan.json").unlink()
    if sign != "checkpoints":
        shutil.rmtree(run / "checkpoints")
    for other in SIGNS - {sign}:
        (run / other).unlink()
    with pytest.raises(RunError, match=f"plan.json is missing, but .*{sign}"):
        resolve_run_plan(Recipe(), str(run), corpus)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    tmp_path: Path, corpus: Corpus
) -> None:
    run = str(tmp_path / "runs" / "trunk")
    first, is_new = resolve_run_plan(Recipe(), run, corpus)
    first.write(run)
    assert is_new
    events, trace = open_events(run), open_trace(run)
    events.append(RunStarted(samples=0, run="trunk", warmup_end=8, stable_end=32, annealing_end=64))
    trace.append(trace_row(batch_samples=32))
    events.flush()
    trace.flush()
    assert find_last_checkpoint(run) == (None, [])
    assert resolve_run_plan(Recipe(), run, corpus) == (first, False)

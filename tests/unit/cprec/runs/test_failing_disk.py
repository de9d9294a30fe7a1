"""A disk that fails at the n-th operation of a run, for every n: nothing is lost or doubled."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import AccessDeniedError
from corpus.build import build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.runs import checkpoint
from cprec.runs.control import liveness
from cprec.runs.events import RecordDropped, RunStarted
from cprec.runs.json_lines import read_events, read_trace
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import create_run_plan
from tests.small_run import planned_rows, train, without_ray
from tests.unit.corpus.worlds import settings, shop, write_root
from tests.unit.failing_disk import FOREVER, Died, FailingDisk


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    place = tmp_path_factory.mktemp("corpus")
    root = write_root(place / "root", shop(("A", "B", "C")))
    return build(settings(root), 0, str(place / "corpus"), print)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray, no renewal of the lease in between, and a dead driver's lease is free at once."""
    without_ray(monkeypatch)
    monkeypatch.setattr(liveness, "RENEWAL_S", 1000.0)
    monkeypatch.setattr(liveness, "is_alive", lambda owner: False)


def start_until_done(disk: FailingDisk, run: str, corpus: Corpus) -> list[str]:
    """Starts a run again until it ends; returns the errors of the starts that did not."""
    errors = []
    for _ in range(6):
        try:
            with disk.installed():
                report = train(run, corpus)
        except Died:
            disk.revive()
        except OSError as error:
            errors.append(str(error))
        else:
            assert (report.missing, report.repeated) == (0, 0)
            return errors
    pytest.fail(f"the run did not end: {errors}")


def check_as_undisturbed(run: str, corpus: Corpus) -> None:
    """Checks plan, trace, events and last checkpoint of a run."""
    expected = create_run_plan(Recipe(), corpus)
    run_plan = RunPlan.read(run)
    assert run_plan is not None
    assert replace(run_plan, lease=0) == expected
    rows = planned_rows(expected.plan)
    assert [row.model_copy(update={"lease": None}) for row in read_trace(run)] == rows
    name, _ = checkpoint.find_latest(run)
    assert name is not None
    assert name.samples == expected.plan.total_samples
    events = read_events(run)
    kinds = Counter(type(event) for event in events)
    assert kinds[RunStarted] == 1
    assert kinds[RecordDropped] == 0
    lines = [event.model_dump_json() for event in events]
    assert len(set(lines)) == len(lines), "an event is there twice"


def count_operations(tmp_path: Path, corpus: Corpus) -> int:
    disk = FailingDisk(tmp_path / "count")
    assert start_until_done(disk, str(tmp_path / "count"), corpus) == []
    check_as_undisturbed(str(tmp_path / "count"), corpus)
    return len(disk.operations)


@pytest.mark.parametrize(
    ("kind", "every"), [("full", 1), ("power cut", 1), ("broken", 3), ("killed", 3)]
)
def test_whichever_operation_fails_the_run_goes_on_as_if_none_had(
    tmp_path: Path, corpus: Corpus, kind: str, every: int
) -> None:
    total = count_operations(tmp_path, corpus)
    assert total > 100
    for n in range(0, total, every):
        run = tmp_path / f"run-{n}"
        errors = start_until_done(FailingDisk(run, kind, n), str(run), corpus)
        for error in errors:
            assert str(run) in error, "the error does not say where"
        check_as_undisturbed(str(run), corpus)


def test_a_disk_that_stays_read_only_is_the_users_to_mend(tmp_path: Path, corpus: Corpus) -> None:
    run = tmp_path / "run"
    disk = FailingDisk(run, "read-only", fails_at=60, lasts=FOREVER)
    with disk.installed(), pytest.raises(AccessDeniedError, match=f"{run}.*Read-only"):
        train(str(run), corpus)
    assert start_until_done(FailingDisk(run), str(run), corpus) == []
    check_as_undisturbed(str(run), corpus)

"""Pre-training: reports of a run under way, what is left to train, previews, and branches.

A report is made now and then, and never at the price of the training.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RunError
from corpus.build import build
from cprec.config.recipe import Recipe
from cprec.config.sections.services import CostSettings
from cprec.encode.prompt import TABLE1
from cprec.runs import checkpoint
from cprec.runs.locks.recipe import write_recipe
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import create_run_plan
from cprec.schedule.plan import Portion
from cprec.schedule.plan_notes import describe_plan
from cprec.schedule.planning import PlanSettings, build_plan
from cprec.schedule.wsa import Mode
from cprec.tracking import live_report
from cprec.tracking.live_report import REPORT_INTERVAL_RATIO, REPORT_INTERVAL_S, LiveReport
from cprec.train.distributed import driver
from cprec.workflows import pretrain
from cprec.workflows.pretraining import prepare, train
from tests.unit.corpus.worlds import settings, shop, write_root


class Clock:
    """A clock, with a report that takes some of its seconds to make, or fails."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.takes = 0.0
        self.made_at: list[float] = []
        self.fails: Exception | None = None

    def monotonic(self) -> float:
        return self.now

    def make_report(self, records: Any, settings: Any, tracker: Any) -> None:
        self.made_at.append(self.now)
        self.now += self.takes
        if self.fails:
            raise self.fails


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live_report, "time", clock)
    monkeypatch.setattr(live_report, "publish_report", clock.make_report)
    return clock


def renew(pictures: LiveReport, clock: Clock, seconds: int) -> None:
    """Asks for a report every second."""
    for _ in range(seconds):
        pictures.refresh()
        clock.now += 1


def test_a_picture_a_minute_the_first_after_one(clock: Clock) -> None:
    pictures = LiveReport("run", CostSettings(), Any, print)  # type: ignore[arg-type]
    renew(pictures, clock, int(3 * REPORT_INTERVAL_S) + 1)
    assert clock.made_at == [
        1000 + REPORT_INTERVAL_S,
        1000 + 2 * REPORT_INTERVAL_S,
        1000 + 3 * REPORT_INTERVAL_S,
    ]


def test_what_takes_long_is_made_more_rarely(clock: Clock) -> None:
    clock.takes = 5.0
    pictures = LiveReport("run", CostSettings(), Any, print)  # type: ignore[arg-type]
    renew(pictures, clock, int(REPORT_INTERVAL_S + 5 * REPORT_INTERVAL_RATIO) + 1)
    assert clock.made_at == [
        1000 + REPORT_INTERVAL_S,
        1000 + REPORT_INTERVAL_S + 5 * REPORT_INTERVAL_RATIO,
    ]


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError("the store is away"), "the store is away"),
        (RunError("no plan.json"), "no plan.json"),
        (KeyError("rows"), "KeyError: 'rows'"),
    ],
)
def test_what_fails_costs_a_picture_and_not_the_training(
    clock: Clock, problem: Exception, said: str
) -> None:
    lines: list[str] = []
    clock.fails = problem
    pictures = LiveReport("run", CostSettings(), Any, lines.append)  # type: ignore[arg-type]
    renew(pictures, clock, int(2 * REPORT_INTERVAL_S) + 1)
    assert lines == [f"the report was not renewed: {said}"] * 2


@pytest.mark.parametrize(("hold", "closed"), [(False, False), (True, False), (True, True)])
def test_a_run_that_is_held_open_waits_again_after_a_restart(
    monkeypatch: pytest.MonkeyPatch, hold: bool, closed: bool
) -> None:
    """Without mixed samples its plan ends where its stable phase does."""
    plan = build_plan(
        PlanSettings(0, 1e-5, 1e-3, 0.1, mode=Mode.DOMAIN_ONLY),
        [Portion("domain/A", 0, 0, 100)],
        [],
    )
    run_plan = RunPlan("", 0, plan, ("A",), (), hold=hold, closed=closed)
    lines: list[str] = []
    trained: list[object] = []
    monkeypatch.setattr(
        train, "find_last_checkpoint", lambda run_uri: (checkpoint.CheckpointName(100, 0), [])
    )
    monkeypatch.setattr(train, "ray_session", lambda address, num_cpus: nullcontext())
    monkeypatch.setattr(train, "build_checked_encoder", lambda *arguments: None)
    monkeypatch.setattr(driver, "run_training", lambda *arguments: trained.append(arguments))
    job = driver.TrainingJob(Recipe(), "runs/a", "base", Any, TABLE1)  # type: ignore[arg-type]
    train.train_run(job, run_plan, Any, Any, lines.append)  # type: ignore[arg-type]
    assert len(trained) == (hold and not closed)
    assert lines == (
        ["resuming cpt from 100 samples"] if trained else ["cpt is trained to the end already"]
    )


def test_a_preview_tells_of_the_run_that_is_there_and_writes_nothing(tmp_path: Path) -> None:
    corpus = build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C")))),
        0,
        str(tmp_path / "corpus"),
        print,
    )
    recipe = Recipe(storage=str(tmp_path / "runs"), corpus=corpus.uri)
    lines: list[str] = []
    pretrain.preview(recipe, corpus, (), lines.append)
    assert not (tmp_path / "runs").exists()
    assert lines[0].startswith("plan: W = ")
    write_recipe(recipe, str(tmp_path / "runs" / "cpt"))
    smaller = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"max_samples": 64})}
    )
    run_plan = create_run_plan(smaller, corpus)
    run_plan.write(str(tmp_path / "runs" / "cpt"))
    pretrain.preview(recipe, corpus, (), lines.append)
    of_the_run = describe_plan(run_plan.plan, recipe.train.global_batch, 0.0, 0.0)
    assert of_the_run in lines
    assert of_the_run != lines[0]
    other = recipe.model_copy(update={"seed": 3})
    with pytest.raises(RunError, match="seed: 0 -> 3"):
        pretrain.preview(other, corpus, (), print)


def test_a_branch_is_a_run_of_its_own() -> None:
    recipe = Recipe(run="other", seed=3)
    uri = "/runs/cpt/checkpoints/000000008192-0"
    branch = prepare.branch_recipe(recipe, uri, None)
    assert (branch.run, branch.continue_from, branch.branch, branch.seed) == (
        "cpt-anneal-8192",
        uri,
        True,
        3,
    )
    assert prepare.branch_recipe(recipe, uri, "release").run == "release"
    with pytest.raises(RunError, match="that is the trunk"):
        prepare.branch_recipe(recipe, uri, "cpt")
    with pytest.raises(RunError, match="not a checkpoint; give <storage>/<run>/checkpoints/"):
        prepare.branch_recipe(recipe, "/runs/cpt/plan.json", None)

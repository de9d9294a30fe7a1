"""Configures all tests: marks by folder, fixed seeds, files spread over processes.

Also has the small run, which several files of tests share.
"""

import gc
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from cluster import progress
from corpus import append_text, build
from cprec.config.command import ALLOCATIONS_PER_COLLECTION
from cprec.config.recipe_file import load_recipe
from cprec.schedule.objectives import Objective
from tests.integration import jobs
from tests.integration.observed_run import ObservedRun, observe

TESTS = Path(__file__).resolve().parent

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")


# Before torch is imported, here or in a job. There are more processes than cores: threads of one
# operation would wait for each other, and burn their time slices meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL_RUN_FILES = (
    "tests/faults/test_nodes.py",
    "tests/integration/test_cpt.py",
    "tests/integration/workflows/test_batch_recommend.py",
    "tests/integration/test_doors.py",
)
"""Files whose tests share the small run (fixture `whole`).

tests/faults/test_kills.py has one of its own: it takes as long as all of these.
"""


class FixtureScheduling(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Runs the tests of a file in one process, and those of all SMALL_RUN_FILES in one.

    So every fixture is set up once.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SMALL_RUN_FILES[0] if file in SMALL_RUN_FILES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FixtureScheduling:
    """Tells pytest-xdist how to spread tests over processes.

    Its groups by mark would do, but need a private name that pytest 9.2 no longer has.
    """
    return FixtureScheduling(config, log)


def pytest_configure() -> None:
    """Lets the garbage collector work as seldom as in a job: a seventh of a test's CPU."""
    gc.set_threshold(ALLOCATIONS_PER_COLLECTION)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test `unit`, `integration`, `faults` or `experiments`, by its folder."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


@pytest.fixture(scope="session", autouse=True)
def _no_lines_of_slow_stages() -> None:
    """Lets no stage say that it takes a while: what a test sees does not depend on the machine."""
    progress.QUIET_S = threading.TIMEOUT_MAX


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small recipe and its corpus, which holds a text for replay.

    Tests may add runs to it, and change nothing else.
    """
    place = tmp_path_factory.mktemp("small")
    (place / "days.txt").write_text(
        " ".join(
            f"On day {day} the wind came from the {('north', 'west')[day % 2]}."
            for day in range(600)
        )
    )
    objectives = {"domain": dict.fromkeys(Objective, 1)}
    schedule = {
        "lr_max": 1e-3,
        "segment_samples": 512,
        "replay_share": 0.1,
        "objectives": objectives,
    }
    recipe = load_recipe(
        str(jobs.recipe(place, schedule=schedule, evaluate={"text": "jobs/recipes/demo.txt"}))
    )
    build.simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, print)
    append_text.append_text(str(place / "days.txt"), recipe.corpus, print)
    return place


@pytest.fixture(scope="session")
def observed(place: Path) -> ObservedRun:
    """The small run, trained without a fault; it also builds the tiny base."""
    ended = observe("cpt", place / "recipe.yaml")
    assert re.search(r"audit: (\d[\d,]*) planned, 0 missing, 0 repeated", ended.stdout)
    return ended


@pytest.fixture(scope="session")
def whole(place: Path, observed: ObservedRun) -> Path:
    """The folder of the small run."""
    return place / "runs" / "small"


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Ends the jobs that failed tests left running."""
    yield
    jobs.end_all()

"""Configures all tests: marks by folder, fixed seeds.

Also has the small run, which several files of tests share.
"""

import gc
import os
import pickle
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock
from hypothesis import settings

from cluster import progress
from corpus import append_text, build
from cprec.config.command import ALLOCATIONS_PER_COLLECTION
from cprec.config.recipe_file import load_recipe
from cprec.schedule.objectives import Objective
from tests.integration import jobs
from tests.integration.observed_run import ObservedRun, observe

TESTS = Path(__file__).resolve().parent
T = TypeVar("T")

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")


# Before torch is imported, here or in a job. There are more processes than cores: threads of one
# operation would wait for each other, and burn their time slices meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests start on this machine is asked without a proxy, whatever the machine has for the rest.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1,localhost"]))


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
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of these tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def make_once(result: Path, make: Callable[[], T]) -> T:
    """Returns what the first process that needed it has made; fails for all if that failed.

    Args:
        result: File that passes it on to the other processes, which wait meanwhile.
        make: Makes it.
    """
    failure = Path(f"{result}.failure")
    with FileLock(f"{result}.lock"):
        if failure.exists():
            pytest.fail(f"{result.stem}: making it failed\n{failure.read_text()}", pytrace=False)
        if not result.exists():
            try:
                result.write_bytes(pickle.dumps(make()))
            except BaseException:
                failure.write_text(traceback.format_exc())
                raise
        made: T = pickle.loads(result.read_bytes())
        return made


@pytest.fixture(scope="session")
def place(shared: Path) -> Path:
    """A folder with the small recipe and its corpus, which holds a text for replay.

    Tests may add runs to it, and change nothing else. Tests of other files do so at the same time.
    """
    return make_once(shared / "place.pickle", lambda: _make_place(shared / "small"))


def _make_place(place: Path) -> Path:
    place.mkdir(exist_ok=True)
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
def observed(shared: Path, place: Path) -> ObservedRun:
    """The small run, trained without a fault; it also builds the tiny base."""
    return make_once(shared / "observed.pickle", lambda: _observe_small_run(place))


def _observe_small_run(place: Path) -> ObservedRun:
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

"""Every test is marked by its folder, draws from fixed seeds, and finds the packages as a worker does: from the tree."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from corpus import append, build
from cprec.config.recipe_file import load_recipe
from tests.integration import jobs

TESTS = Path(__file__).resolve().parent

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")


SHARING_THE_SMALL_RUN = ("tests/faults/test_kills.py", "tests/integration/test_cpt.py")


class ByFixtures(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """A file's tests run in one process, which makes its fixtures once; so do those of the files that share the small run."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SHARING_THE_SMALL_RUN[0] if file in SHARING_THE_SMALL_RUN else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFixtures:
    """How pytest-xdist deals tests to processes. (Its groups by mark need a private name that pytest 9.2 no longer has.)"""
    return ByFixtures(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests `unit`, `integration`, `faults` or `experiments` after the folder that they live in."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        item.add_marker(folder)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small recipe, and a corpus with a text that is replayed, for all tests that only add runs to it."""
    place = tmp_path_factory.mktemp("small")
    (place / "days.txt").write_text(
        " ".join(
            f"On day {day} the wind came from the {('north', 'west')[day % 2]}."
            for day in range(600)
        )
    )
    schedule = {"lr_max": 1e-3, "segment_samples": 512, "replay_share": 0.1}
    recipe = load_recipe(
        str(jobs.recipe(place, schedule=schedule, evaluate={"text": "jobs/recipes/demo.txt"}))
    )
    build.simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, print)
    append.append_text(str(place / "days.txt"), recipe.corpus, print)
    return place


@pytest.fixture(scope="session")
def whole(place: Path) -> Path:
    """The small run without a fault, started with no base there. Returns its folder."""
    done = jobs.run("cpt", place / "recipe.yaml")
    assert re.search(r"audit: (\d[\d,]*) planned, 0 missing, 0 repeated", done.stdout)
    return place / "runs" / "small"


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Jobs that a failed test started end with the tests."""
    yield
    jobs.end_all()

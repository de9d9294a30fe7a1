"""Every test is marked by its folder, draws from fixed seeds, and finds the packages as a worker does: from the tree."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from corpus import append, build
from cprec.resolve import load
from tests.integration import jobs

TESTS = Path(__file__).resolve().parent

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests `unit`, `integration`, `faults` or `experiments` after the folder that they live in.

    A file's tests run in one process, which makes its fixtures once; those files that share the small run are one group.
    """
    sharing = {item.path for item in items if isinstance(item, pytest.Function) and "whole" in item.fixturenames}
    for item in items:
        path = item.path.relative_to(TESTS)
        item.add_marker(path.parts[0])
        item.add_marker(pytest.mark.xdist_group("small" if item.path in sharing else str(path)))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small recipe, and a corpus with a text that is replayed, for all tests that only add runs to it."""
    place = tmp_path_factory.mktemp("small")
    (place / "days.txt").write_text(" ".join(f"On day {day} the wind came from the {('north', 'west')[day % 2]}." for day in range(600)))
    schedule = {"lr_max": 1e-3, "segment_samples": 512, "replay_share": 0.1}
    recipe = load(str(jobs.recipe(place, schedule=schedule, evaluate={"text": "jobs/recipes/demo.txt"})))
    build.prepare(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, print)
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

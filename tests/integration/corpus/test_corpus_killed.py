"""Builds whose process is killed, while samples are made and while files are written."""

from pathlib import Path

import pytest

from cluster.errors import CorpusError
from corpus.build import build
from corpus.store.tables import Corpus
from tests.faults.test_kills import kill_session
from tests.integration import jobs
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(
        tmp_path_factory.mktemp("root"), shop(("A", "B", "C"), users=12_000, items=400)
    )


@pytest.mark.parametrize(
    ("reached", "above"),
    [
        ("items/_delta_log/*.json", 10**12),
        ("samples/*/*/*/*.parquet", 10**12),
        ("interactions/*.parquet", 0),
    ],
    ids=["items committed", "first file of samples", "on Ray, first file of interactions"],
)
def test_a_build_that_is_killed_leaves_no_corpus_and_is_completed(
    root: Path, tmp_path: Path, reached: str, above: int
) -> None:
    place = tmp_path / "corpus"
    recipe = write_recipe(root, tmp_path)
    with jobs.start("build_corpus", recipe, "--data.distribute_above", str(above)) as process:
        jobs.kill_when(process, lambda: any(place.glob(reached)))
    with pytest.raises(CorpusError, match="no corpus here"):
        Corpus.open(str(place))
    assert "committed corpus version 0" in _build_output(recipe)
    clean = build(settings(root), 0, str(tmp_path / "clean"), print)
    names = [
        [added.file.uri.removeprefix(corpus.uri) for added in corpus.commits[0].added]
        for corpus in (Corpus.open(str(place)), clean)
    ]
    assert names[0] == names[1]
    assert Corpus.open(str(place)).statistics() == clean.statistics()
    assert "nothing to do" in _build_output(recipe)


def test_a_build_whose_ray_session_dies_is_a_fault_that_says_what_died(
    root: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(root, tmp_path)
    process = jobs.start("build_corpus", recipe, "--data.distribute_above", "0")
    jobs.wait_for(process, lambda: any((tmp_path / "corpus").glob("interactions/*.parquet")))
    [line] = [line for line in kill_session(process, "gcs_server").splitlines() if "fault" in line]
    assert "gcs_server.out" in line


def write_recipe(root: Path, place: Path) -> Path:
    """Writes a recipe whose corpus is to be built below a folder."""
    data = {
        "root": str(root),
        "format": "root",
        "domains": ["A", "B"],
        "held_out": ["C"],
        "num_candidates": 5,
        "max_history": 4,
    }
    return jobs.recipe(place, data=data)


def _build_output(recipe: Path) -> str:
    """Runs a whole build and returns its output on one line."""
    return " ".join(jobs.run("build_corpus", recipe).stdout.split())

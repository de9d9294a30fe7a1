"""Builds whose process is killed, while samples are made and while files are written."""

from pathlib import Path

import pytest

from cluster.errors import CorpusError
from corpus.build import build
from corpus.store.tables import Corpus
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
    data = {
        "root": str(root),
        "format": "root",
        "domains": ["A", "B"],
        "held_out": ["C"],
        "num_candidates": 5,
        "max_history": 4,
    }
    recipe = jobs.recipe(tmp_path, data=data)
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


def _build_output(recipe: Path) -> str:
    """Runs a whole build and returns its output on one line."""
    return " ".join(jobs.run("build_corpus", recipe).stdout.split())

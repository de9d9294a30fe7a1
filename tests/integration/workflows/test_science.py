"""The study of one GPU at toy size, without Ray: short visits give what a long one gives."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.integration import jobs
from tests.integration.test_benchmarks import bare_script

ABSENT = ("ray", "deltalake", "mlflow", "s3fs", "polars", "faiss")
"""Libraries that the study does without."""
VISITS = """
import sys

import science


class Clock:
    "One second later at each look."
    def __init__(self):
        self.seconds = 0

    def __call__(self):
        self.seconds += 1
        return self.seconds


def visit(state, seconds):
    options = ["--archive", sys.argv[1], "--state", f"{sys.argv[2]}/{state}", "--seeds", "2"]
    return science.main(["run", *options, "--minutes", str(seconds / 60)], Clock())


assert visit("whole", 1_000_000) == 0
short = 0
while visit("parts", 25) == 3:
    short += 1
print("short visits:", short)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("science")
    recipe = jobs.recipe(
        place,
        train={"global_batch": 32, "zero_stage": 0, "max_samples": 96},
        finetune={"epochs": 2, "global_batch": 16, "max_samples": 48, "validation_users": 10},
        search={"lrs": [1e-3, 3e-3]},
        baseline={"max_epochs": 2, "size": 8, "patience_steps": 0},
    )
    jobs.run_here("build_corpus", recipe)
    file = place / "science.zip"
    arguments = ["prepare", str(recipe), "--archive", str(file), "--test-users", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    jobs.run_python("benchmarks/science.py", *arguments, environment=environment, timeout_s=300)
    return file


def test_short_visits_give_what_one_long_visit_gives(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(bare_script(ABSENT))
    (tmp_path / "visits.py").write_text(VISITS)
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
    }
    scripts = [tmp_path / "bare.py", tmp_path / "visits.py"]
    output = jobs.run_python(*scripts, archive, tmp_path, environment=environment, timeout_s=300)
    assert int(output.rsplit("short visits: ", 1)[1]) >= 3
    results = {
        state: json.loads((tmp_path / state / "results.json").read_text())
        for state in ("whole", "parts")
    }
    assert set(results["whole"]) == set(results["parts"])
    scored = sorted(path.name for path in (tmp_path / "whole").glob("*.npy"))
    assert len(scored) == 1 + 2 * 4
    for name in scored:
        whole, parts = (np.load(tmp_path / state / name) for state in ("whole", "parts"))
        assert np.array_equal(whole, parts), name
    assert not np.array_equal(
        *(np.load(tmp_path / "whole" / f"score-{name}-0.npy") for name in ("llara", "cprec"))
    )
    table = (tmp_path / "parts" / "table.md").read_text()
    assert table == (tmp_path / "whole" / "table.md").read_text()
    for row in ("base, zero-shot | 1", "SASRec | 2", "(LLaRA) | 2", "(CPRec) | 2"):
        assert row in table

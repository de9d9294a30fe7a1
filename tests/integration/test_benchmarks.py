"""Benchmarks import what exists; that of the GPU runs to its end on a CPU, at toy size."""

import json
import os
from pathlib import Path

import pytest

from tests.integration import jobs

SHARED = {"workload", "gpu_time"}
"""Files that benchmarks import."""
BENCHMARKS = sorted(
    path.stem for path in (jobs.ROOT / "benchmarks").glob("*.py") if path.stem not in SHARED
)
ABSENT = ("ray", "deltalake", "mlflow", "botocore", "s3fs", "aiohttp", "polars", "faiss")
"""Libraries that a bare machine with a GPU does not have."""
BARE = f"""
import builtins, runpy, sys

real = builtins.__import__
ours = ("cprec", "cluster", "corpus", "workload", "gpu_time", "__main__")

def without(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "").split(".")[0]
    if level == 0 and importer in ours and name.split(".")[0] in {ABSENT}:
        raise ModuleNotFoundError(name)
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = without
sys.argv = sys.argv[1:]
sys.path.insert(0, "benchmarks")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_gpu_benchmark_runs_at_toy_size_on_a_bare_machine(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(BARE)
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
    }
    cases = ["7b-bf16", "7b-fp8", "135m-full", "135m-scoring"]
    options = ["--toy", "--only", *cases, "--out", str(tmp_path / "figures.json")]
    output = jobs.run_python(
        str(tmp_path / "bare.py"),
        "benchmarks/gpu.py",
        *options,
        environment=environment,
        timeout_s=300,
    )
    figures = json.loads((tmp_path / "figures.json").read_text())["cases"]
    assert set(figures) == set(cases)
    for name in cases:
        assert figures[name]["rate"] > 0
        assert figures[name]["tflops"] > 0
        assert f"| {name} |" in output


def test_a_resume_in_the_gpu_benchmark_gives_the_same_losses(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--toy", "--only", "135m-resume", "--out", str(out)]
    jobs.run_python("benchmarks/gpu.py", *options, environment=os.environ, timeout_s=300)
    figures = json.loads(out.read_text())["cases"]["135m-resume"]
    assert len(figures["losses"]) == 2
    assert figures["largest_difference"] == 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_imports_and_explains_itself(name: str) -> None:
    output = jobs.run_python(
        f"benchmarks/{name}.py", "--help", environment=os.environ, timeout_s=300
    )
    assert f"python benchmarks/{name}.py" in output

"""Benchmarks import what exists; that of the GPU runs to its end on a CPU, at toy size."""

import json
import os

import pytest

from tests.integration import jobs

BENCHMARKS = sorted(
    path.stem for path in (jobs.ROOT / "benchmarks").glob("*.py") if path.stem != "workload"
)


@pytest.mark.parametrize("option", ["--compile", "--fp8"])
def test_the_gpu_benchmark_runs_at_toy_size(option: str) -> None:
    sizes = "--samples 32 --batch 8 --pack-tokens 256 --steps 4 --warmup 1".split()
    arguments = ["benchmarks/gpu.py", "--toy", *sizes, option]
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
    }
    output = jobs.run_python(*arguments, environment=environment, timeout_s=300)
    figures = json.loads(output[output.index("{\n") : output.rindex("}") + 1])
    assert figures["tokens_per_s"] > 0
    assert figures["tflops"] > 0
    assert figures["precision"] == ("fp8" if option == "--fp8" else "fp32")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_imports_and_explains_itself(name: str) -> None:
    output = jobs.run_python(
        f"benchmarks/{name}.py", "--help", environment=os.environ, timeout_s=300
    )
    assert f"python benchmarks/{name}.py" in output

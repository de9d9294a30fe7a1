"""The GPU's benchmark runs to its end on a CPU at toy size, so that it will where there is a GPU. Its figures mean nothing here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("option", ["--compile", "--fp8"])
def test_the_benchmark_of_a_gpu_runs_at_toy_size(option: str) -> None:
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--toy",
        "--samples",
        "32",
        "--batch",
        "8",
        "--pack-tokens",
        "256",
        "--steps",
        "4",
        "--warmup",
        "1",
        option,
    ]
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index("{\n") : done.stdout.rindex("}") + 1])
    assert found["tokens_per_s"] > 0
    assert found["tflops"] > 0
    assert found["precision"] == ("fp8" if option == "--fp8" else "fp32")

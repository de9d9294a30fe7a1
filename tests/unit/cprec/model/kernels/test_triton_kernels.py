"""Triton's kernels compute what PyTorch does, as far as its interpreter on a CPU shows.

In FP8 and bf16 the interpreter does not round as a GPU does, so other types stand for them.
"""

from pathlib import Path

import pytest

from tests.integration import jobs

INTERPRETED = """
import torch

from cprec.model.kernels import triton_kernels

torch.manual_seed(0)
for rows, columns, rank in [(70, 130, 8), (64, 128, 16), (5, 300, 3), (129, 17, 64)]:
    out, up = torch.randn(rows, columns), torch.randn(columns, rank)
    low = torch.randn(rows, rank + 5)[:, 2 : 2 + rank]
    expected = out + low @ up.t()
    triton_kernels.add_low_rank(out, low, up)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)

for widths in [(48,), (100, 33), (64, 16, 200)]:
    for broken in (float("nan"), float("inf"), -float("inf")):
        matrices = [torch.randn(7, width) for width in widths]
        matrices[0][4] = 0
        matrices[-1][3, 5] = broken
        values, scales = triton_kernels.quantise_rows(matrices, torch.float16)
        found, expected = values.float() * scales, torch.cat(matrices, dim=1)
        whole = torch.arange(7) != 3
        torch.testing.assert_close(found[whole], expected[whole], rtol=1e-3, atol=1e-6)
        largest = expected[whole].abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        torch.testing.assert_close(scales[whole], largest / torch.finfo(torch.float16).max)
        assert not scales[3].isfinite().any()  # so that no product of the row is
"""


def test_the_interpreted_kernels_compute_what_pytorch_does(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for CUDA")
    (tmp_path / "interpreted.py").write_text(INTERPRETED)
    environment = {**jobs.worker_environment(), "TRITON_INTERPRET": "1"}
    jobs.run_python(tmp_path / "interpreted.py", environment=environment, timeout_s=300)

"""The engine on real DeepSpeed, at every ZeRO stage, LoRA and full; a soft prompt at the last one.

Losses are those of plain PyTorch, resuming is exact, and the number of workers may change.
"""

import json
from typing import Any

import pytest

from tests.integration import jobs

CASES = [(kind, stage) for kind in ("lora", "full") for stage in range(4)]
CASES += [("prompt", 3)]
# Two workers train LoRA at stage 1 with dropout, which one worker draws differently.
WITHOUT_DROPOUT = [case for case in CASES if case != ("lora", 1)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """The results of tests/integration/train/engine_worker.py by number of workers.

    One worker resumes the checkpoints of the two that ran before it.
    """
    folder = tmp_path_factory.mktemp("engine")
    for world in (2, 1):
        jobs.run_python(
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world),
            "tests/integration/train/engine_worker.py",
            folder,
            environment={**jobs.worker_environment(), "DS_ACCELERATOR": "cpu"},
            timeout_s=500,
        )
    return {world: json.loads((folder / f"seen-{world}.json").read_text()) for world in (1, 2)}


@pytest.mark.parametrize(
    ("world", "stage"), [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 2), (2, 3)]
)
def test_losses_are_those_of_plain_pytorch(results: dict[int, Any], world: int, stage: int) -> None:
    assert results[world][f"lora-{stage}"]["whole"] == pytest.approx(results[1]["plain"], abs=1e-5)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", range(4))
def test_a_measured_loss_is_that_of_plain_pytorch_in_evaluation_mode(
    results: dict[int, Any], world: int, stage: int
) -> None:
    assert results[world][f"lora-{stage}"]["text"] == pytest.approx(
        results[1]["plain_text"], rel=1e-6
    )


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_a_resumed_run_that_measures_is_bitwise_the_uninterrupted_one_that_does_not(
    results: dict[int, Any], kind: str, stage: int
) -> None:
    case = results[2][f"{kind}-{stage}"]
    assert case["resumed"] == case["whole"][2:]
    assert case["bitwise"]
    # Measured without dropout, and the model has learned.
    assert case["twice"][0] == case["twice"][1] != case["text"]


@pytest.mark.parametrize(("kind", "stage"), WITHOUT_DROPOUT)
def test_another_number_of_workers_continues_with_the_same_losses(
    results: dict[int, Any], kind: str, stage: int
) -> None:
    assert results[1][f"{kind}-{stage}"]["resumed"] == pytest.approx(
        results[2][f"{kind}-{stage}"]["whole"][2:], abs=1e-4
    )

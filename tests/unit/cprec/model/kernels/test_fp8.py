"""Frozen layers in FP8 are close to the originals in both directions; others stay as they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from cluster.errors import RecipeError
from cprec.config.sections.model import ModelSettings
from cprec.model.kernels.fp8 import (
    FrozenFP8Linear,
    FrozenFP8Weight,
    quantise_frozen_layers,
    quantise_rows,
)
from cprec.train.device import OperationCount
from tests.models import llama


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_quantised_rows_differ_by_a_sixteenth_of_each_value_at_most(seed: int, size: float) -> None:
    rows = random(4, 32, seed=seed) * size
    values, scale = quantise_rows(rows)
    error = (values.float() * scale - rows).abs()
    assert (error <= rows.abs() / 16 + rows.abs().amax(1, keepdim=True) * 2**-17).all()


def test_a_row_of_zeros_stays_zero() -> None:
    values, scale = quantise_rows(torch.zeros(2, 16))
    assert (values.float() * scale == 0).all()


def test_output_and_input_gradient_are_near_those_of_the_layer() -> None:
    weight = random(48, 64, seed=1)
    x = random(5, 7, 64, seed=2).bfloat16()
    gradient = random(5, 7, 48, seed=3).bfloat16()
    x.requires_grad_(True)
    out = FrozenFP8Linear(FrozenFP8Weight(weight), 0, 48)(x)
    out.backward(gradient)
    for actual, expected in ((out, x.float() @ weight.t()), (x.grad, gradient.float() @ weight)):
        assert actual is not None
        assert (actual.float() - expected).norm() <= 0.06 * expected.norm()


# PEFT calls transformers by a deprecated name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_only_frozen_layers_under_lora_are_replaced_and_operations_are_counted_as_before() -> None:
    model = get_peft_model(
        llama(64).bfloat16(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    before = OperationCount.from_model(model, 64)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert quantise_frozen_layers(model) == 14
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert OperationCount.from_model(model, 64) == before
    loss = model(input_ids=torch.arange(1, 17)[None], labels=torch.arange(1, 17)[None]).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "settings", [{"fp8": True}, {"fp8": True, "adapter": "full", "precision": "bf16"}]
)
def test_fp8_is_for_a_frozen_base_in_bf16(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"model.fp8 needs"):
        ModelSettings(**settings)  # type: ignore[arg-type]


def test_fp8_is_not_beside_zero_3_nor_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(fp8=True, precision="bf16")
    for stage in (None, 0, 1, 2):
        settings.require_stage(stage)
    ModelSettings().require_stage(3)
    with pytest.raises(RecipeError, match=r"model\.fp8: not at ZeRO stage 3"):
        settings.require_stage(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    with pytest.raises(
        RecipeError, match=r"NVIDIA A100 has no FP8, its compute capability is 8\.0"
    ):
        quantise_frozen_layers(torch.nn.Linear(16, 16))


def test_operations_are_two_per_weight_and_direction() -> None:
    frozen = torch.nn.Linear(8, 16, bias=False).requires_grad_(False)
    head = torch.nn.Linear(8, 100, bias=False).requires_grad_(False)
    trained = torch.nn.Linear(8, 4, bias=False)
    count = OperationCount.from_model(torch.nn.ModuleList([frozen, trained, head]), 100)
    assert count == OperationCount(per_token=4 * 128 + 6 * 32, per_logit=4 * 800)
    assert count.step_operations(10, 3) == 10 * count.per_token + 3 * count.per_logit

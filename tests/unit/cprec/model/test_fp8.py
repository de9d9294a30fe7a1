"""Frozen layers in FP8: as near as e4m3 gets, in both directions, and only what is frozen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from cprec.config.recipe import ModelSettings
from cprec.model.fp8 import FrozenFP8Linear, quantise_frozen_layers, quantise_rows
from cprec.train.device import OperationCount
from tests.models import llama


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_quantised_rows_come_back_within_a_sixteenth_of_each_value(seed: int, size: float) -> None:
    rows = random(4, 32, seed=seed) * size
    values, scale = quantise_rows(rows)
    error = (values.float() * scale - rows).abs()
    assert (error <= rows.abs() / 16 + rows.abs().amax(1, keepdim=True) * 2**-17).all()


def test_a_row_of_zeros_stays_zero() -> None:
    values, scale = quantise_rows(torch.zeros(2, 16))
    assert (values.float() * scale == 0).all()


def test_output_and_input_gradient_are_near_those_of_the_layer() -> None:
    weight, x, gradient = (
        random(48, 64, seed=1),
        random(5, 7, 64, seed=2).bfloat16(),
        random(5, 7, 48, seed=3).bfloat16(),
    )
    x.requires_grad_(True)
    out = FrozenFP8Linear(weight)(x)
    out.backward(gradient)
    for seen, wanted in ((out, x.float() @ weight.t()), (x.grad, gradient.float() @ weight)):
        assert seen is not None
        assert (seen.float() - wanted).norm() <= 0.06 * wanted.norm()


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning"
)  # PEFT asks transformers under a name of the past
def test_only_the_frozen_base_under_lora_is_replaced_and_the_work_stays_the_same() -> None:
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


def test_work_is_two_operations_per_weight_and_direction() -> None:
    frozen, head = (
        torch.nn.Linear(8, 16, bias=False).requires_grad_(False),
        torch.nn.Linear(8, 100, bias=False).requires_grad_(False),
    )
    trained = torch.nn.Linear(8, 4, bias=False)
    work = OperationCount.from_model(torch.nn.ModuleList([frozen, trained, head]), 100)
    assert work == OperationCount(per_token=4 * 128 + 6 * 32, per_logit=4 * 800)
    assert work.step_operations(10, 3) == 10 * work.per_token + 3 * work.per_logit

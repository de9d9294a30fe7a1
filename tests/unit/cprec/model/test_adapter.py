"""LoRA that is fused into the frozen layers' output computes what PEFT's own does."""

import pytest
import torch

from cprec.config.recipe import ModelSettings
from cprec.model import adapter
from tests.models import llama

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning"
)  # PEFT asks transformers under a name of the past


def seen(
    dropout: float, fused: bool, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and the gradients of everything trained."""
    base = llama(50, spread=4)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype)
    model = adapter.attach(base, ModelSettings(lora_rank=4, lora_dropout=dropout), 0)
    torch.manual_seed(1)
    for name, parameter in adapter.trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data.normal_()
    if fused:
        assert adapter.fuse_lora(model) == 14
    torch.manual_seed(2)
    logits = model(input_ids=torch.arange(40).view(2, 20)).logits
    logits.float().square().mean().backward()
    return logits, {
        name: p.grad
        for name, p in adapter.trainable_parameters(model).items()
        if p.grad is not None
    }


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_outputs_and_gradients_are_those_of_peft(dropout: float) -> None:
    (wanted, before), (found, after) = seen(dropout, fused=False), seen(dropout, fused=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert before.keys() == after.keys()
    assert len(before) == 28
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, atol=1e-5, rtol=1e-4)


def test_the_outputs_type_is_the_base_models() -> None:
    logits, _ = seen(0.0, fused=True, dtype=torch.bfloat16)
    assert logits.dtype == torch.bfloat16


def test_a_disabled_adapter_is_disabled() -> None:
    model = adapter.attach(llama(50), ModelSettings(lora_dropout=0.0), 0)
    plain = model.get_base_model()  # type: ignore[operator]
    for name, parameter in adapter.trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data.normal_()
    adapter.fuse_lora(model)
    ids = torch.arange(10)[None]
    with model.disable_adapter():  # type: ignore[operator]
        without = plain(input_ids=ids).logits
    assert not torch.allclose(without, plain(input_ids=ids).logits)
    torch.testing.assert_close(without, llama(50)(input_ids=ids).logits)

"""LoRA fused into the output of frozen layers computes what PEFT's own code computes."""

import pytest
import torch

from cprec.config.recipe import ModelSettings
from cprec.model import adapter
from tests.models import llama

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def run_model(
    dropout: float, fused: bool, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the logits, and the gradients of all trained parameters by name."""
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
    expected, expected_gradients = run_model(dropout, fused=False)
    logits, gradients = run_model(dropout, fused=True)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert expected_gradients.keys() == gradients.keys()
    assert len(expected_gradients) == 28
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_the_output_has_the_base_models_dtype() -> None:
    logits, _ = run_model(0.0, fused=True, dtype=torch.bfloat16)
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
        disabled = plain(input_ids=ids).logits
    assert not torch.allclose(disabled, plain(input_ids=ids).logits)
    torch.testing.assert_close(disabled, llama(50)(input_ids=ids).logits)

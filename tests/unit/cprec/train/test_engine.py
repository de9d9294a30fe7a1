"""What the engine does to models of any family, without a process group."""

from typing import Any

import pytest
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from cprec.train.engine import compile_layers
from tests.models import SHAPE, llama


# The compiler imports a deprecated module.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_layers_are_compiled_whatever_their_parts_are_called(family: str) -> None:
    model: Any = llama(97)
    layers = model.model.layers
    if family == "GPT-NeoX":
        config = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=97, **config))
        layers = model.gpt_neox.layers
    compile_layers(model)
    assert all(layer._compiled_call_impl is not None for layer in layers)
    assert model._compiled_call_impl is None

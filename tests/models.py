"""Network of the tests that need one: a LLaMA of a few thousand random weights, grouped queries."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def llama(vocabulary: int, seed: int = 0, spread: float = 1.0, **changes: Any) -> LlamaForCausalLM:
    """Builds a network with random weights, in training mode.

    Args:
        vocabulary: Size of the vocabulary, in tokens.
        seed: Seed of the weights.
        spread: Factor on all weights. Far above 1, logits are far from uniform, so that a leak from
            one sample to another shows.
        changes: Settings of LlamaConfig that differ from SHAPE.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": vocabulary, **changes}))
    for parameter in model.parameters():
        parameter.data.mul_(spread)
    return model

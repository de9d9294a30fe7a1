"""The network of tests that need one: a LLaMA of a few thousand random weights, with grouped queries."""

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
    """Random weights of a seed, in training mode. spread: factor on all of them; far above 1, logits are far from uniform, so that a sample that saw
    another would show. changes: of LlamaConfig."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": vocabulary, **changes}))
    for parameter in model.parameters():
        parameter.data.mul_(spread)
    return model

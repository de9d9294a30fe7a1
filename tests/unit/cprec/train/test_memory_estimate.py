"""The memory estimate: exact where autograd's tensors are counted, near to what GPUs have used."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cprec.config.sections.model import ModelSettings
from cprec.model import adapter
from cprec.model.kernels import fp8, lora_fusion
from cprec.model.self_check import decoder_layers
from cprec.train.memory_estimate import MemoryEstimate

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

LLAMA_2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
SUPERVISED_FRACTION = 26 / 696
"""Fraction of supervised tokens in the prompts with which the peaks were measured."""


def trainable(base: PreTrainedModel, lora: bool, dropout: float = 0.0) -> torch.nn.Module:
    settings = ModelSettings(adapter="lora" if lora else "full", lora_rank=8, lora_dropout=dropout)
    return adapter.attach(base.bfloat16(), settings, 0)


def on_meta(config: LlamaConfig, lora: bool) -> torch.nn.Module:
    with torch.device("meta"):
        return trainable(LlamaForCausalLM(config), lora)


@pytest.mark.parametrize(
    ("compiled", "quantised", "tokens", "measured_gb"),
    [
        (False, False, 8192, 59.5),
        (True, False, 8192, 49.5),
        (True, True, 8192, 62.5),
        (True, True, 16384, 97.8),
    ],
)
def test_the_peaks_of_a_7b_with_lora_on_an_h200_are_met(
    compiled: bool, quantised: bool, tokens: int, measured_gb: float
) -> None:
    model = on_meta(LLAMA_2_7B, lora=True)
    beside = 0
    if quantised:
        # When this was measured, the weights in bf16 lay beside their copies in FP8.
        beside = sum(
            p.numel() * p.element_size() for n, p in model.named_parameters() if "base_layer" in n
        )
        fp8.quantise_frozen_layers(model)
    estimate = MemoryEstimate.from_model(model, "bf16", compiled)
    supervised_tokens = int(SUPERVISED_FRACTION * tokens)
    peak = estimate.peak_bytes(0, 1, False, tokens, supervised_tokens) + beside
    assert peak / 1e9 == pytest.approx(measured_gb, rel=0.02)


@pytest.mark.parametrize(
    ("compiled", "tokens", "measured_gb"),
    [(False, 16384, 15.1), (True, 16384, 11.4), (True, 32768, 20.1)],
)
def test_the_peaks_of_a_135m_that_is_trained_in_full_are_met(
    compiled: bool, tokens: int, measured_gb: float
) -> None:
    estimate = MemoryEstimate.from_model(on_meta(SMOLLM2_135M, lora=False), "bf16", compiled)
    peak = estimate.peak_bytes(0, 1, False, tokens, int(SUPERVISED_FRACTION * tokens))
    assert peak / 1e9 == pytest.approx(measured_gb, rel=0.02)


def test_weights_in_fp8_take_what_they_took_in_bf16() -> None:
    model = on_meta(LLAMA_2_7B, lora=True)
    before = MemoryEstimate.from_model(model, "bf16", True).state.bytes_by_kind(0, 1)
    fp8.quantise_frozen_layers(model)
    after = MemoryEstimate.from_model(model, "bf16", True).state.bytes_by_kind(0, 1)
    assert after["weights"] < 0.05 * before["weights"]
    assert sum(after.values()) == pytest.approx(sum(before.values()), rel=0.01)
    # Fresh LoRA weights are fp32 before DeepSpeed has them; that does not make the base fp32.
    assert before["weights"] == 2 * sum(p.numel() for p in on_meta(LLAMA_2_7B, True).parameters())


def small(family: str, layers: int) -> PreTrainedModel:
    """Returns a small model; that of Qwen 3 has few key heads, and norms of queries and keys."""
    settings: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    if family == "Qwen 3":
        return Qwen3ForCausalLM(Qwen3Config(**settings, num_key_value_heads=2))
    return LlamaForCausalLM(LlamaConfig(**settings))


def kept_bytes(model: torch.nn.Module, tokens: int) -> int:
    """Returns the bytes that autograd keeps of a forward pass beside weights and buffers."""
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in itertools.chain(model.parameters(), model.buffers())
    }
    kept: list[torch.Tensor] = []  # holds them, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    ids = torch.arange(tokens)[None] % 97
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del logits
    return sum(size for address, size in storages.items() if address not in own)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# What the compiler itself does: it imports deprecated modules, and looks at gradients of inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("family", "lora", "dropout", "compiled"),
    [
        ("Llama", True, 0.0, False),
        ("Llama", True, 0.0, True),
        ("Llama", False, 0.0, False),
        ("Llama", False, 0.0, True),
        ("Qwen 3", True, 0.0, False),
        ("Qwen 3", False, 0.0, False),
        # Compiled only: a CPU keeps the mask of eager dropout as numbers, a GPU as bools.
        ("Qwen 3", True, 0.1, True),
    ],
)
def test_a_layer_keeps_what_the_estimate_counts(
    family: str, lora: bool, dropout: float, compiled: bool
) -> None:
    tokens = 512
    kept = []
    for layers in (1, 2):
        model = trainable(small(family, layers), lora, dropout).bfloat16()
        lora_fusion.fuse_lora(model)
        if compiled:
            torch.compiler.reset()
            for layer in decoder_layers(model):
                layer.compile(backend="aot_eager_decomp_partition")
        kept.append(kept_bytes(model, tokens))
    # Statistics of norms and softmax are not counted, nor LoRA's joined matrices.
    counted = MemoryEstimate.from_model(
        trainable(small(family, 2), lora, dropout), "bf16", compiled
    ).layer
    assert kept[1] - kept[0] == pytest.approx(tokens * counted.total, rel=0.03)
    assert kept[1] - kept[0] >= tokens * counted.total


def test_zero_partitions_more_with_every_stage_and_recomputation_keeps_less() -> None:
    estimate = MemoryEstimate.from_model(on_meta(LLAMA_2_7B, lora=False), "bf16", False)
    peaks = [estimate.peak_bytes(stage, 8, True, 4096, 200) for stage in range(4)]
    assert peaks == sorted(peaks, reverse=True)
    for stage in (1, 2, 3):
        few, many = (estimate.peak_bytes(stage, n, True, 4096, 200) for n in (2, 64))
        assert many < few
    assert estimate.activation_bytes(4096, True) < 0.1 * estimate.activation_bytes(4096, False)
    assert estimate.peak_bytes(3, 8, False, 4096, 4096) > estimate.peak_bytes(3, 8, False, 4096, 9)

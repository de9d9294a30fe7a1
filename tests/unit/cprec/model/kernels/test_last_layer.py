"""The last layer computes supervised tokens only, and gives what it gives when it computes all."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cprec.config.sections.model import ModelSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.encode.tokens import EncodedSample
from cprec.model import adapter
from cprec.model.kernels import attention, flash_attention
from cprec.model.kernels.last_layer import TrimmedLayer, trim_last_layer
from cprec.model.kernels.lora_fusion import fuse_lora
from cprec.stream.packing import MicroBatch, MicroBatchSpec, collate
from cprec.train.device import OperationCount, single_process_group
from cprec.train.engine import Engine
from cprec.train.forward import supervised_logits
from tests.models import SHAPE, llama

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

VOCABULARY, END = 97, 0
CPU = torch.device("cpu")


def build(family: str, **changes: Any) -> Any:
    """Builds a model with random weights far from zero, so that each of its parts shows."""
    configurations: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "Mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
        "Qwen 3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
        "Granite": (GraniteForCausalLM, GraniteConfig, {"residual_multiplier": 0.9}),
        "Gemma 2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 8}),
        "Mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
        "gpt-oss": (GptOssForCausalLM, GptOssConfig, {"num_local_experts": 4, "head_dim": 8}),
    }
    if family == "Llama":
        return llama(VOCABULARY, spread=6, **changes)
    model, config, settings = configurations[family]
    torch.manual_seed(0)
    built = model(config(**{**SHAPE, "vocab_size": VOCABULARY, **settings, **changes}))
    for parameter in built.parameters():
        parameter.data.mul_(4)
    return built


def row(lengths: list[int], answers: list[int], seed: int = 0) -> MicroBatch:
    """Returns a packed row of samples, each with so many tokens and so many of an answer."""
    rng = np.random.default_rng(seed)
    return collate(
        [
            EncodedSample(rng.integers(1, VOCABULARY, n).astype(np.int32), n - answer, 0)
            for n, answer in zip(lengths, answers, strict=True)
        ],
        MicroBatchSpec(packed=True, size=sum(lengths)),
        END,
    )


def loss_and_gradients(model: Any, batch: MicroBatch) -> tuple[float, list[torch.Tensor]]:
    logits = supervised_logits(model, batch, CPU)
    loss = F.cross_entropy(logits, torch.from_numpy(batch.targets))
    trained = [p for p in model.parameters() if p.requires_grad]
    return loss.item(), list(torch.autograd.grad(loss, trained))


def assert_equal_training(whole: Any, trimmed: Any, batch: MicroBatch) -> None:
    expected, actual = (loss_and_gradients(model, batch) for model in (whole, trimmed))
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    # Some gradients are sums that cancel, so what rounding changes is seen beside the largest one.
    limit = 1e-4 * max(float(gradient.abs().max()) for gradient in expected[1])
    for gradient, reference in zip(actual[1], expected[1], strict=True):
        assert (gradient - reference).abs().max() <= limit


samples = st.integers(2, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1)))


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen 3"])
@given(rows=st.lists(samples, min_size=1, max_size=6))
def test_loss_and_gradients_are_those_of_all_tokens(
    family: str, rows: list[tuple[int, int]]
) -> None:
    whole, trimmed = build(family), build(family)
    for model in (whole, trimmed):
        attention.enable_packing(model)
    assert trim_last_layer(trimmed) is not None
    lengths, answers = map(list, zip(*rows, strict=True))
    assert_equal_training(whole, trimmed, row(lengths, answers))


@pytest.mark.parametrize("recomputed", [False, True])
def test_lora_is_trained_as_before(recomputed: bool) -> None:
    models = []
    for trims in (False, True):
        model: Any = adapter.attach(build("Llama"), ModelSettings(lora_dropout=0.0), 0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        attention.enable_packing(model)
        fuse_lora(model)
        if recomputed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        assert not trims or trim_last_layer(model) is not None
        models.append(model)
    assert_equal_training(models[0], models[1], row([31, 2, 17, 40], [5, 1, 3, 9]))


def test_tokens_may_be_named_twice_as_in_buffers_of_fixed_size() -> None:
    model, batch = build("Llama"), row([31, 2, 17], [5, 1, 3])
    attention.enable_packing(model)
    trim_last_layer(model)
    assert batch.bounds is not None
    inputs = {
        "input_ids": torch.from_numpy(batch.input_ids),
        "position_ids": torch.from_numpy(batch.position_ids),
        "use_cache": False,
        **attention.packed_arguments(torch.from_numpy(batch.bounds), 31),
    }
    rows = torch.from_numpy(np.flatnonzero(batch.supervised_mask[0]))
    once = model(**inputs, logits_to_keep=rows).logits[0]
    filled = torch.cat([rows, torch.zeros(7, dtype=torch.int64)])
    twice = model(**inputs, logits_to_keep=filled).logits[0]
    assert (twice[: len(rows)] - once).abs().max() <= 1e-5 * once.abs().max()


def test_a_row_without_supervised_tokens_has_gradients_of_zero() -> None:
    """A worker that has no sample in a step computes one, like the others."""
    model = build("Llama")
    attention.enable_packing(model)
    trim_last_layer(model)
    batch = row([31, 17], [5, 3])
    batch = replace(batch, supervised_mask=np.zeros_like(batch.supervised_mask))
    logits = supervised_logits(model, batch, CPU)
    assert logits.shape == (0, VOCABULARY)
    for gradient in torch.autograd.grad(logits.sum(), list(model.parameters())):
        assert not gradient.any()


@pytest.mark.parametrize("family", ["Granite", "Gemma 2", "gpt-oss"])
def test_layers_that_differ_from_llamas_stay_whole(family: str) -> None:
    assert trim_last_layer(build(family)) is None


@pytest.fixture
def alone() -> Any:
    with single_process_group("gloo"):
        yield


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("family", "trimmed"),
    [("Llama", True), ("Mistral", True), ("Qwen 3", True), ("Granite", False), ("Gemma 2", False)],
)
def test_an_engine_trims_what_it_can(family: str, trimmed: bool) -> None:
    engine = Engine(build(family), TrainSettings(zero_stage=0), "fp32")
    assert engine.packed
    assert any(isinstance(m, TrimmedLayer) for m in engine.model.modules()) == trimmed


@pytest.mark.usefixtures("alone")
def test_a_last_layer_that_is_also_an_earlier_one_stays_whole() -> None:
    """Its code is LLaMA's, and the model reads more of it than supervised tokens."""
    model = build("Llama", num_hidden_layers=3)
    model.model.layers[1] = model.model.layers[2]
    engine = Engine(model, TrainSettings(zero_stage=0), "fp32")
    assert engine.packed
    assert not any(isinstance(m, TrimmedLayer) for m in model.modules())


def test_undone_it_computes_all_tokens_again() -> None:
    model, batch = build("Llama"), row([31, 17], [5, 3])
    attention.enable_packing(model)
    before = supervised_logits(model, batch, CPU)
    trim = trim_last_layer(model)
    assert trim is not None
    assert not torch.equal(supervised_logits(model, batch, CPU), before)  # rounded otherwise
    trim.undo()
    assert torch.equal(supervised_logits(model, batch, CPU), before)
    assert type(model.model.layers[-1]).__name__ == "LlamaDecoderLayer"


def test_operations_are_those_that_are_counted() -> None:
    """Matrix products of a step, but for attention's own, as the trace counts them."""
    lengths, answers = [60, 60, 60], [2, 3, 4]
    batch = row(lengths, answers)
    counted = {}
    for trims in (False, True):
        model = build("Llama", num_attention_heads=1, num_key_value_heads=1)
        model.config._attn_implementation = "eager"
        attention.enable_packing(model)
        assert not trims or trim_last_layer(model) is not None
        count = OperationCount.from_model(model, VOCABULARY)
        counted[trims] = count.step_operations(sum(lengths), sum(answers))
        with FlopCounterMode(display=False) as flops:
            loss_and_gradients(model, batch)
        products = flops.get_flop_counts()["Global"]
        actual = sum(n for name, n in products.items() if str(name) in ("aten.mm", "aten.addmm"))
        # The first layer's input needs no gradient where embeddings are not trained; here they are.
        assert actual == counted[trims]
    assert counted[True] < 0.8 * counted[False]


def attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float | None = None,
    causal: bool = True,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes the call of `flash_attention.attend_sequences`; one operation for the compiler."""
    tokens = torch.arange(len(query))
    sample = torch.searchsorted(query_bounds[1:].contiguous(), tokens, right=True)
    mask = (sample[:, None] == sample) & (tokens[:, None] >= tokens)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out[0].transpose(0, 1), torch.zeros(())


# What the compiler itself does: it imports deprecated modules, and looks at gradients of inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_last_layer_is_compiled_once_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flash call, which a CPU does not have, is computed plainly; the rest is the GPU's way."""
    whole, trimmed = (build("Llama", num_hidden_layers=4) for _ in range(2))
    for model in (whole, trimmed):
        attention.enable_packing(model)
    trim_last_layer(trimmed)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    def attend(layer: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        return attention._attend_with_flash(
            query, key, value, others["packed_bounds"], 0, others["scaling"], None
        ), None

    rows = [row([20 + n, 9, 12 + n], [4 + n, 2, 3], n) for n in range(5)]
    expected = [loss_and_gradients(whole, batch)[0] for batch in rows]
    monkeypatch.setattr(attention, "packed_attention", attend)
    monkeypatch.setattr(flash_attention, "attend_sequences", attend_plainly)
    attention._register(attention.ATTENTION_NAME)
    torch.compiler.reset()
    seen = []
    try:
        for layer in trimmed.model.layers:
            layer.compile(backend=count, fullgraph=True)
        for batch, loss in zip(rows, expected, strict=True):
            assert loss_and_gradients(trimmed, batch)[0] == pytest.approx(loss, rel=1e-5)
            seen.append(len(graphs))
    finally:
        monkeypatch.undo()
        attention._register(attention.ATTENTION_NAME)
        torch.compiler.reset()
    assert seen[1:] == [seen[1]] * (len(seen) - 1)  # nothing is compiled after the second step

"""The self-check tells right passes from wrong ones on models of many families, and proves it."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import RecipeError
from cprec.config.sections.pretraining import TrainSettings
from cprec.evaluation.candidate_rows import PassKind, Query
from cprec.evaluation.candidate_scoring import score_queries
from cprec.evaluation.scoring_check import choose_decoding, choose_scoring
from cprec.model.context_length import context_length
from cprec.model.kernels import attention
from cprec.train.forward import supervised_logits
from cprec.train.memory_estimate import MemoryEstimate
from cprec.train.pack_check import choose_packing
from tests.models import llama

ROOT = Path(__file__).resolve().parents[4]


def load_families() -> Any:
    spec = importlib.util.spec_from_file_location(
        "model_families", ROOT / "docs" / "reference" / "models.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


families = load_families()

CHECKED = {
    "Llama": (True, PassKind.PACKED, True),
    "Mistral": (True, PassKind.PACKED, True),
    "Gemma 2": (True, PassKind.PACKED, True),
    "Gemma 3": (True, PassKind.PACKED, True),
    "gpt-oss": (True, PassKind.PACKED, True),
    "JetMoe": (True, PassKind.PACKED, True),
    "GPT-2": (True, PassKind.PACKED, True),
    "GPT-Neo": (True, PassKind.ALONE, True),
    "StableLM": (False, PassKind.MASKED, True),
    "BLOOM": (False, PassKind.ALONE, True),
    "MPT": (False, PassKind.ALONE, True),
    "LFM2": (False, PassKind.ALONE, True),
    "Mamba 2": (False, PassKind.ALONE, False),
    "RWKV": (False, PassKind.ALONE, False),
    "Llama 4": (False, PassKind.MASKED, True),
}
"""Whether a family packs, how it scores, and whether it generates with a cache."""

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about models of old


def packing(model: Any, **settings: Any) -> tuple[bool, str | None]:
    compute = partial(supervised_logits, model, device=torch.device("cpu"))
    with torch.no_grad():
        return choose_packing(
            lambda batch: compute(batch=batch), model, TrainSettings(**settings), 256
        )


def score_alone(model: Any, query: Query) -> np.ndarray:
    scores = []
    for answer in query.answers:
        ids = torch.tensor([query.prompt + answer])
        with torch.no_grad():
            log_p = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        columns = torch.arange(len(query.prompt) - 1, ids.shape[1] - 1)
        scores.append(float(log_p[columns, torch.tensor(answer)].sum()))
    return np.array(scores)


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["fresh", "loud"])
@pytest.mark.parametrize("name", CHECKED)
def test_each_family_takes_the_way_that_is_right(name: str, scale: float) -> None:
    model = families.build(name, scale)
    packs, kind, cached = CHECKED[name]
    assert choose_scoring(model, 256).kind == kind
    assert choose_decoding(model, 256).fast == cached
    assert packing(model)[0] == packs


@pytest.mark.parametrize("name", CHECKED)
def test_scores_are_those_of_each_candidate_alone(name: str) -> None:
    """Also beyond the windows of attention, and whatever the other candidates are."""
    model = families.build(name, 3.0)
    rng = np.random.default_rng(0)
    query = Query(
        rng.integers(3, 160, 70).tolist(), [rng.integers(3, 160, n).tolist() for n in (3, 9, 1, 6)]
    )
    method = choose_scoring(model, query.longest)
    scores = score_queries(model, [query, Query(query.prompt[9:], query.answers)], 2, method.kind)
    expected = score_alone(model, query)
    assert np.abs(scores[0] - expected).max() <= 2e-3 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("adapted", [False, True])
def test_attention_that_is_broken_on_purpose_is_found(
    adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh weights, which hide most: one layer ignores the bounds, branches, or the mask."""
    original = attention.packed_attention

    def leaking(module: Any, *args: Any, **others: Any) -> Any:
        if module.layer_idx == 1 and others.get("packed_bounds") is not None:
            others["packed_bounds"] = others["packed_bounds"][[0, -1]]
        if module.layer_idx == 1:
            others.pop("packed_branches", None)
        return original(module, *args, **others)

    def build() -> Any:
        model: Any = llama(97).eval()
        if adapted:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(
                model, LoraConfig(target_modules="all-linear", init_lora_weights=False)
            ).eval()
        return model

    assert packing(build())[0]
    assert choose_scoring(build(), 256).kind is PassKind.PACKED
    monkeypatch.setattr(attention, "packed_attention", leaking)
    packed, reason = packing(build())
    assert not packed
    assert reason is not None
    assert "tokens of others" in reason
    with pytest.raises(RecipeError, match=r"train\.targets_per_pass 1"):
        packing(build(), targets_per_pass=2)
    method = choose_scoring(build(), 256)
    assert method.kind is PassKind.MASKED
    assert "dense mask, which is slower: tokens of others" in method.notice

    model = build()
    attention.enable_packing(model)

    def unmasked(module: Any, q: Any, k: Any, v: Any, mask: Any, **others: Any) -> Any:
        return leaking(module, q, k, v, None if module.layer_idx else mask, **others)

    from transformers import AttentionInterface

    AttentionInterface.register(attention.ATTENTION_NAME, unmasked)
    try:
        method = choose_scoring(model, 256)
    finally:
        AttentionInterface.register(attention.ATTENTION_NAME, original)
    assert method.kind is PassKind.ALONE
    assert "on its own, which is much slower: tokens of others" in method.notice


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    model = families.build("BERT, not causal")
    with pytest.raises(RecipeError, match="not a causal language model"):
        choose_scoring(model, 256)
    with pytest.raises(RecipeError, match="not a causal language model"):
        packing(model)


def test_the_check_changes_neither_random_state_nor_mode_nor_attention() -> None:
    model = families.build("StableLM").train()
    state, implementation = torch.get_rng_state(), model.config._attn_implementation
    choose_scoring(model, 256)
    choose_decoding(model, 256)
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    model.eval()
    assert packing(model)[0] is False
    assert model.config._attn_implementation == implementation
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "BLOOM", "Falcon", "MPT", "Mamba 2", "Llama"])
def test_the_size_of_any_model_is_known(name: str) -> None:
    estimate = MemoryEstimate.from_model(families.build(name), "fp32", compiled=False)
    assert (estimate.layers, estimate.hidden_bytes) == (2, 4 * 64)
    # Residual streams, inputs, and something between them.
    assert estimate.layer.total > 4 * estimate.hidden_bytes


def test_a_text_model_inside_another_is_measured() -> None:
    import transformers

    model = families.build("Gemma 3")
    model.config = transformers.Gemma3Config(text_config=model.config)
    assert MemoryEstimate.from_model(model, "fp32", compiled=False).hidden_bytes == 4 * 64


def test_the_context_of_a_base_is_known() -> None:
    import transformers

    assert context_length(transformers.GPT2Config(n_positions=64)) == (
        64,
        "max_position_embeddings",
    )
    assert context_length(transformers.MptConfig(max_seq_len=99)) == (99, "max_seq_len")
    assert context_length(transformers.BloomConfig()) is None
    assert context_length(transformers.Mamba2Config()) is None
    rotary = transformers.LlamaConfig(
        max_position_embeddings=64,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    )
    assert context_length(rotary) == (256, "max_position_embeddings")


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "linear", "factor": 2.5}, 640),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 64,
            },
            64,
        ),
    ],
)
def test_the_context_follows_rotary_scaling(scaling: dict[str, Any], expected: int) -> None:
    """Beyond the original context, dynamic and longrope rotate all rows of a pass otherwise."""
    import transformers

    config = transformers.LlamaConfig(
        max_position_embeddings=256,
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={"rope_theta": 10_000.0, **scaling},
    )
    found = context_length(config)
    assert found is not None
    assert found[0] == expected

"""What is trained of every base that loads is saved, loaded and merged whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconH1Config,
    GptOssConfig,
    Mamba2Config,
    MixtralConfig,
)

from cluster.errors import RecipeError, RunError
from cprec.config.sections.model import ModelSettings
from cprec.encode.prompt import TABLE1
from cprec.model import adapter
from cprec.model.adapter_files import ADAPTER_WEIGHTS, FULL_WEIGHTS, PARTIAL_WEIGHTS
from tests.models import SHAPE, llama

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


GATES: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
MAMBA: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
}
BASES: dict[str, Any] = {
    "mixtral": MixtralConfig(**SHAPE, vocab_size=50, num_local_experts=4),
    "deepseek_v3": DeepseekV3Config(**{**SHAPE, "num_key_value_heads": 4}, **GATES, vocab_size=50),
    "gpt_oss": GptOssConfig(**SHAPE, vocab_size=50, head_dim=8, num_local_experts=4),
    "mamba2": Mamba2Config(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=16,
    ),
    "falcon_h1": FalconH1Config(
        **SHAPE, **MAMBA, vocab_size=50, mamba_n_groups=1, mamba_chunk_size=16
    ),
}
BUFFER = "model.layers.1.mlp.gate.e_score_correction_bias"


def fresh(name: str) -> Any:
    """Returns a small base of an architecture, the same one at every call."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(BASES[name]).eval()


def change_trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Changes every trained parameter, as training does, and returns copies of them."""
    torch.manual_seed(1)
    trained = adapter.trainable_parameters(model)
    for parameter in trained.values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


@pytest.mark.parametrize("dropout", [0.1, 0.0])
@pytest.mark.parametrize("name", BASES)
def test_lora_trains_every_base_and_is_the_same_after_loading_and_merging(
    tmp_path: Path, name: str, dropout: float
) -> None:
    settings = ModelSettings(lora_rank=4, lora_dropout=dropout)
    model = adapter.attach(fresh(name), settings, 0)
    weights = change_trained(model)
    assert weights
    ids = torch.arange(20)[None]
    expected = model.eval()(input_ids=ids, use_cache=False).logits
    expected.sum().backward()
    assert all(p.grad is not None for p in adapter.trainable_parameters(model).values())
    adapter.save(model, weights, tmp_path, "base", None, TABLE1)
    loaded = adapter.load(fresh(name), tmp_path)
    again = loaded(input_ids=ids, use_cache=False).logits
    assert not torch.allclose(again, fresh(name)(input_ids=ids, use_cache=False).logits)
    torch.testing.assert_close(again, expected)
    merged: Any = loaded.merge_and_unload()  # type: ignore[operator]
    torch.testing.assert_close(
        merged(input_ids=ids, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4
    )


def test_experts_and_mambas_output_are_left_out() -> None:
    def leaves(name: str) -> set[str]:
        return {target.rpartition(".")[2] for target in adapter.lora_targets(fresh(name))}

    assert leaves("mixtral") == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert leaves("mamba2") == {"in_proj"}
    assert leaves("falcon_h1") >= {"q_proj", "o_proj", "in_proj", "down_proj"}
    assert "out_proj" not in leaves("falcon_h1")


def test_a_base_without_linear_layers_is_refused() -> None:
    base = llama(50)
    for module in list(base.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear) and name != "lm_head":
                setattr(module, name, torch.nn.Identity())
    with pytest.raises(RecipeError, match=r"no linear layer.*set model.adapter full"):
        adapter.attach(base, ModelSettings(), 0)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), NotImplementedError("x"), AttributeError("x")]
)
def test_whatever_peft_refuses_is_the_users_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(adapter, "get_peft_model", refuse)
    with pytest.raises(RecipeError, match=r"model\.adapter: LoRA does not fit this base.*x"):
        adapter.attach(llama(50), ModelSettings(), 0)


@pytest.mark.parametrize("name", BASES)
def test_a_part_is_trained_and_is_the_same_after_loading(tmp_path: Path, name: str) -> None:
    settings = ModelSettings(adapter="partial", last_layers=1)
    model = adapter.attach(fresh(name), settings, 0)
    weights = change_trained(model)
    assert weights
    assert all(".layers.1." in weight for weight in weights)
    adapter.save(model, weights, tmp_path, "base", None, TABLE1)
    assert weights.keys() <= load_file(tmp_path / PARTIAL_WEIGHTS).keys()
    loaded = adapter.load(fresh(name), tmp_path).state_dict()
    expected, base = model.state_dict(), fresh(name).state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert {key for key in base if not torch.equal(loaded[key], base[key])} == weights.keys()
    again = adapter.load_for_training(fresh(name), tmp_path)
    assert again.training
    assert adapter.trainable_parameters(again).keys() == weights.keys()
    ids = torch.arange(20)[None]
    again(input_ids=ids, use_cache=False).logits.sum().backward()
    assert any(p.grad is not None for p in adapter.trainable_parameters(again).values())


def test_a_part_may_be_named(tmp_path: Path) -> None:
    def attach(**settings: Any) -> torch.nn.Module:
        return adapter.attach(llama(50), ModelSettings(adapter="partial", **settings), 0)

    names = adapter.trainable_parameters(attach(trained_weights=("*norm*", "lm_head.*"))).keys()
    assert "lm_head.weight" in names
    assert all("norm" in name or name == "lm_head.weight" for name in names)
    with pytest.raises(RecipeError, match=r"no weight of this base is named h\.1\.\*; its names"):
        attach(trained_weights=("*norm*", "h.1.*"))
    with pytest.raises(RecipeError, match="last_layers: 3, and this base has 2 layers"):
        attach(last_layers=3)
    model = attach(last_layers=1)
    adapter.save(model, change_trained(model), tmp_path, "base", None, TABLE1)
    for other in (llama(50, intermediate_size=96), llama(50, num_hidden_layers=1)):
        with pytest.raises(RunError, match="do not fit the base model"):
            adapter.load(other, tmp_path)


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "mixtral"])
def test_a_full_checkpoint_loads_again_with_its_buffers(tmp_path: Path, name: str) -> None:
    model = adapter.attach(fresh(name), ModelSettings(adapter="full"), 0)
    weights = change_trained(model)
    for buffer in adapter.persistent_buffers(model):
        model.get_buffer(buffer).data.fill_(0.5)
    adapter.save(model, weights, tmp_path, "base", None, TABLE1)
    loaded = adapter.load(fresh(name), tmp_path).state_dict()
    expected = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_full_checkpoint_of_an_earlier_release_takes_the_bases_buffers(tmp_path: Path) -> None:
    base = fresh("deepseek_v3")
    base.get_buffer(BUFFER).fill_(0.25)
    model = adapter.attach(fresh("deepseek_v3"), ModelSettings(adapter="full"), 0)
    adapter.save(model, change_trained(model), tmp_path, "base", None, TABLE1)
    file = tmp_path / FULL_WEIGHTS
    weights = load_file(file)
    del weights[BUFFER]
    save_file(weights, file)
    assert (adapter.load(base, tmp_path).get_buffer(BUFFER) == 0.25).all()


@pytest.mark.parametrize("tied", [True, False])
def test_only_tied_weights_may_be_absent(tmp_path: Path, tied: bool) -> None:
    model = adapter.attach(llama(50, tie_word_embeddings=tied), ModelSettings(adapter="full"), 0)
    weights = change_trained(model)
    weights.pop("lm_head.weight", None)
    adapter.save(model, weights, tmp_path, "base", None, TABLE1)
    base = llama(50, tie_word_embeddings=tied)
    if not tied:
        with pytest.raises(RunError, match=r"do not fit the base model: missing .*lm_head"):
            adapter.load(base, tmp_path)
        return
    loaded = adapter.load(base, tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("file", [FULL_WEIGHTS, ADAPTER_WEIGHTS])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", bytes(400)])
def test_a_damaged_adapter_is_the_users_error(tmp_path: Path, file: str, content: bytes) -> None:
    model = adapter.attach(llama(50), ModelSettings(lora_rank=4), 0)
    adapter.save(model, change_trained(model), tmp_path, "base", None, TABLE1)
    (tmp_path / ADAPTER_WEIGHTS).unlink()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(RunError, match="not fit the base model"):
        adapter.load(llama(50), tmp_path)


def test_an_adapter_of_a_wider_base_is_the_users_error(tmp_path: Path) -> None:
    model = adapter.attach(llama(50, hidden_size=64), ModelSettings(lora_rank=4), 0)
    adapter.save(model, change_trained(model), tmp_path, "base", None, TABLE1)
    with pytest.raises(RunError, match="this adapter does not fit the base model"):
        adapter.load(llama(50), tmp_path)


@pytest.mark.parametrize("kind", ["lora", "full", "partial"])
def test_weights_are_loaded_into_a_model_that_is_to_be_trained(tmp_path: Path, kind: Any) -> None:
    settings = ModelSettings(adapter=kind, last_layers=1)
    trained = adapter.attach(llama(50), settings, 0)
    weights = change_trained(trained)
    adapter.save(trained, weights, tmp_path / "saved", "base", None, TABLE1)
    begun = adapter.attach(llama(50), settings, 1)
    adapter.load_weights(begun, tmp_path / "saved")
    loaded = adapter.trainable_parameters(begun)
    assert begun.training
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_weights_of_other_layers_are_refused(tmp_path: Path) -> None:
    trained = adapter.attach(llama(50), ModelSettings(), 0)
    adapter.save(
        trained, adapter.trainable_parameters(trained), tmp_path / "saved", "base", None, TABLE1
    )
    deeper = adapter.attach(llama(50, num_hidden_layers=3), ModelSettings(), 0)
    with pytest.raises(
        RunError, match=r"other layers than this recipe trains: missing \['base_mod"
    ):
        adapter.load_weights(deeper, tmp_path / "saved")
    wider = adapter.attach(llama(50, intermediate_size=96), ModelSettings(), 0)
    with pytest.raises(RunError, match="these weights do not fit the model"):
        adapter.load_weights(wider, tmp_path / "saved")
    with pytest.raises(
        RunError, match=r"no model\.safetensors, which this recipe's model\.adapter"
    ):
        adapter.load_weights(llama(50), tmp_path / "saved")

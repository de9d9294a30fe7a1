"""A base that is not whole is refused by name, with the reason, before anything is computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

from cluster.errors import RecipeError
from cprec.model import backbone, base_checks
from tests.models import SHAPE
from tests.unit.cprec.model.bases import edit_json, word_tokenizer, write_base

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("bases") / "sound")


@pytest.fixture
def base(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "base"))


def load(base: Path) -> Any:
    backbone.load_tokenizer.cache_clear()
    return backbone.load(str(base), None, "fp32")[0]


def rewrite(base: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Replaces every weight by what `change` returns for it."""
    old = load_file(base / WEIGHTS)
    new = {name: t for pair in old.items() for name, t in change(*pair).items()}
    save_file({k: v.clone() for k, v in new.items()}, base / WEIGHTS, metadata={"format": "pt"})


def test_a_sound_base_is_loaded_and_every_weight_is_its_own(base: Path) -> None:
    loaded = load(base).state_dict()
    saved = load_file(base / WEIGHTS)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_not_missing(tmp_path: Path, tied: bool) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=tied)
    assert ("lm_head.weight" in load_file(base / WEIGHTS)) is not tied
    load(base)


def test_names_without_the_models_own_prefix_are_not_missing(base: Path) -> None:
    rewrite(base, lambda name, tensor: {name.removeprefix("model."): tensor})
    load(base)


def test_buffers_of_old_checkpoints_are_passed_over(base: Path) -> None:
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(base, lambda name, t: {name: t, **(inv_freq if "norm.weight" in name else {})})
    load(base)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n, t: {f"module.{n}": t}, r"begin with 'module\.'.*DeepSpeed.*inside the wrapper"),
        (lambda n, t: {f"_orig_mod.{n}": t}, r"'_orig_mod\.', as torch\.compile"),
        (lambda n, t: {f"base_model.model.{n}": t}, r"'base_model\.model\.', as PEFT"),
        (lambda n, t: {} if "lm_head" in n else {n: t}, r"lacks 1 weights.*lm_head\.weight"),
        (lambda n, t: {} if "layers.1." in n else {n: t}, r"lacks 9 weights.*model\.layers\.1\."),
        (
            lambda n, t: {"score.weight": t[:2]} if "lm_head" in n else {n: t},
            r"lacks 1.*lm_head\.weight; its files hold score\.weight instead",
        ),
        (
            lambda n, t: {n: t, **({"v_head.weight": t[:1]} if "lm_head" in n else {})},
            r"holds 1 weights that config\.json has no place for: v_head\.weight",
        ),
        (lambda n, t: {n: t[:0] if "norm" in n else t}, r"empty tensors.*ZeRO 3.*zero_to_fp32"),
        (lambda n, t: {n: t.to(torch.int8) if "up_proj" in n else t}, r"2 quantised.* in I8"),
        (lambda n, t: {n: t.to(torch.float8_e4m3fn) if "up_proj" in n else t}, r"in F8_E4M3"),
        (
            lambda n, t: {n.replace("q_proj.", "q_proj.base_layer."): t},
            r"lacks 2.*q_proj\.weight.*hold model\.layers\.0\.self_attn\.q_proj\.base_layer",
        ),
        (
            lambda n, t: {f"language_model.{n}": t},
            r"lacks 21 weights.*hold language_model\.lm_head",
        ),
        (lambda n, t: {n: t * float("nan") if "lm_head" in n else t}, r"NaN.*1 weights: lm_head"),
        (lambda n, t: {n: t / 0 if "q_proj" in n else t}, r"infinite values in 2 weights"),
    ],
)
def test_weights_that_are_not_the_models_refuse_the_base(
    base: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], reason: str
) -> None:
    rewrite(base, change)
    with pytest.raises(RecipeError, match=rf"model\.base: .*{reason}"):
        load(base)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged or was cut.*fetch it again"),
        (lambda raw: raw[:-1], "damaged or was cut"),
        (lambda raw: raw[:5], "damaged or was cut"),
        (lambda raw: raw + b"x", "damaged or was cut"),
        (lambda raw: b"", "0 bytes"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (lambda raw: b"<!DOCTYPE html><html>403</html>", "is a web page"),
        (lambda raw: b"PK\x03\x04" + bytes(400), "damaged or was cut"),
    ],
)
def test_damaged_weights_are_named(
    base: Path, content: Callable[[bytes], bytes], reason: str
) -> None:
    file = base / WEIGHTS
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(RecipeError, match=rf"model\.safetensors of .*base .*{reason}"):
        load(base)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"intermediate_size": 128}, r"other sizes than config\.json says.*down_proj"),
        ({"vocab_size": 400}, r"other sizes.*lm_head\.weight: \[280, 32\].*\[400, 32\]"),
        ({"num_hidden_layers": 1}, r"has no place for: model\.layers\.1\."),
        ({"num_hidden_layers": 3}, r"lacks 9 weights.*layers\.2\."),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq\)"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
        ({"quantization_config": ["gptq"]}, "quantised"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "mystery"}, r"'mystery', which transformers .* does not know; give"),
        (
            {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
            "needs code of its own, which is never run",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"hidden_size": "32"}, "does not load.*hidden_size"),
        ({"num_attention_heads": 5}, "does not load.*attention heads"),
        ({"rope_parameters": {"rope_type": "nonsense"}}, "does not load"),
        ({"hidden_act": "nonsense"}, "does not load"),
    ],
)
def test_a_config_of_another_model_is_refused(
    base: Path, values: dict[str, Any], reason: str
) -> None:
    edit_json(base / "config.json", **values)
    with pytest.raises(RecipeError, match=rf"model\.base: .*{reason}"):
        load(base)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(), "encoder-decoder"),
        (BertConfig(), "is an encoder"),
        ({"model_type": "clip"}, "not a causal language model"),
        ({"model_type": "gemma3"}, "Gemma3ForConditionalGeneration, which takes images"),
    ],
)
def test_models_of_another_kind_are_refused(base: Path, config: Any, reason: str) -> None:
    values = config if isinstance(config, dict) else config.to_dict()
    (base / "config.json").write_text(json.dumps(values))
    with pytest.raises(RecipeError, match=reason):
        load(base)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe{}", b"[" * 100_000])
def test_a_file_that_is_not_json_is_named(base: Path, name: str, content: bytes) -> None:
    (base / name).write_bytes(content)
    with pytest.raises(RecipeError, match=rf"{name} of .*(is not JSON|is empty)"):
        load(base)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_json_of_another_form_is_named(base: Path, name: str) -> None:
    (base / name).write_text("[]")
    with pytest.raises(RecipeError, match=rf"{name} of .* is not a JSON object"):
        load(base)


def test_json_that_no_library_reads_does_not_matter(base: Path) -> None:
    (base / "log.json").write_text('{"step": 1}\n{"step": 2}\n')
    load(base)


@pytest.mark.parametrize("content", ['{"version": "1.0"}', "[]", '{"version": "1.0", "model": {}}'])
def test_a_tokenizer_without_its_fields_is_named(base: Path, content: str) -> None:
    (base / "tokenizer.json").write_text(content)
    with pytest.raises(RecipeError, match=r"tokenizer\.json is not a tokenizer"):
        load(base)


def test_a_base_without_tokenizer_is_refused(base: Path) -> None:
    for path in base.glob("*token*"):
        path.unlink()
    with pytest.raises(RecipeError, match=r"model\.base: .*tokenizer"):
        load(base)


def test_absent_shards_are_named(base: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (base / WEIGHTS).rename(base / shards["a"])
    (base / INDEX).write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(RecipeError, match=r"lacks 1 of the 2 files .*model-00002-of-00002"):
        load(base)
    (base / INDEX).write_text('{"metadata": {}}')
    with pytest.raises(RecipeError, match="has no weight_map"):
        load(base)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pytorch_model.bin", r"pytorch_model\.bin is not read.*pickle.*save_pretrained"),
        ("consolidated.safetensors", r"consolidated\.safetensors has not the name"),
        ("adapter_model.safetensors", "is a PEFT adapter, not a model"),
        ("model.gguf", r"model\.gguf has not the name"),
        ("notes.md", "fetch the weights as safetensors"),
    ],
)
def test_other_weights_are_named(base: Path, name: str, reason: str) -> None:
    (base / WEIGHTS).rename(base / name)
    with pytest.raises(RecipeError, match=rf"holds no model\.safetensors; .*{reason}"):
        load(base)


def test_a_directory_of_an_adapter_is_refused(base: Path) -> None:
    (base / "config.json").rename(base / "adapter_config.json")
    with pytest.raises(RecipeError, match=r"no config\.json in .*holds a PEFT adapter"):
        load(base)


def test_a_finite_weight_whose_sum_overflows_is_finite() -> None:
    base_checks.check_finite(torch.nn.Linear(1, 1), "x")
    large = torch.nn.Linear(4, 4)
    large.weight.data.fill_(3e38)
    base_checks.check_finite(large, "x")


def test_architectures_with_other_names_load(tmp_path: Path) -> None:
    rows = len(word_tokenizer())
    load(write_base(tmp_path / "gpt2", GPT2Config(vocab_size=rows, n_embd=32, n_layer=1, n_head=2)))
    base = write_base(tmp_path / "llama", LlamaConfig(**{**SHAPE, "vocab_size": rows + 64}))
    edit_json(base / "config.json", architectures=None)
    load(base)

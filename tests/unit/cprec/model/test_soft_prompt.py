"""A soft prompt is PEFT's, sample by sample, and each sample of a packed row has its own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, PrefixTuningConfig
from safetensors.torch import load_file, save_file

from cluster.errors import RunError
from cprec.config.sections.model import ModelSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.downstream.hybrid import HybridModel
from cprec.encode.prompt import PROMPT_FILE, TABLE1
from cprec.encode.title_encoding import build_title_encoding
from cprec.encode.title_tokens import CachedPromptEncoder
from cprec.encode.tokens import EncodedSample, TitleEncoder
from cprec.evaluation.perplexity import compute_perplexity
from cprec.evaluation.scoring_check import choose_decoding, choose_scoring
from cprec.model import adapter
from cprec.model.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from cprec.model.libraries import silence_libraries
from cprec.model.tiny import train_tokenizer
from cprec.stream.packing import MicroBatchSpec, collate
from cprec.train.device import single_process_group
from cprec.train.engine import Engine
from tests.models import llama

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOKENS = 4
TEMPLATE = TABLE1.with_soft_tokens(TOKENS)
SETTINGS = ModelSettings(adapter="prompt", soft_tokens=TOKENS)
WORDS = torch.tensor([[7, 3, 20, 11, 42, 5]])


def with_soft_tokens(words: torch.Tensor) -> torch.Tensor:
    soft = torch.tensor(TEMPLATE.soft_ids).expand(len(words), -1)
    return torch.cat([soft, words], dim=1)


def trained(vocabulary: int = 50) -> Any:
    """Returns a model whose soft prompt is as long as the words, and none of them."""
    model: Any = adapter.attach(llama(vocabulary, spread=3.0), SETTINGS, 0)
    [soft] = adapter.trainable_parameters(model).values()
    torch.manual_seed(1)
    soft.data += 0.1 * torch.randn_like(soft)
    return model


def save(model: Any, directory: Path) -> None:
    adapter.save(model, adapter.trainable_parameters(model), directory, "base", None, TEMPLATE)


def test_it_is_pefts_prompt_tuning(tmp_path: Path) -> None:
    model = trained().eval()
    save(model, tmp_path)
    expected = PeftModel.from_pretrained(llama(50, spread=3.0), str(tmp_path)).eval()
    with torch.inference_mode():
        of_peft = expected(input_ids=WORDS, attention_mask=torch.ones_like(WORDS)).logits
        own = model(input_ids=with_soft_tokens(WORDS)).logits
        without = model(input_ids=WORDS).logits
    torch.testing.assert_close(own, of_peft)
    assert not torch.allclose(own[:, TOKENS:], without)
    for load in (adapter.load, adapter.load_for_training):
        again = load(llama(50, spread=3.0), tmp_path)
        assert torch.equal(again(input_ids=with_soft_tokens(WORDS)).logits, own)
    assert [*adapter.trainable_parameters(again)] == [*adapter.trainable_parameters(model)]
    begun: Any = adapter.attach(llama(50, spread=3.0), SETTINGS, 3)
    adapter.load_weights(begun, tmp_path)
    assert torch.equal(begun(input_ids=with_soft_tokens(WORDS)).logits, own)
    assert [*adapter.trainable_parameters(begun)] == [*adapter.trainable_parameters(model)]


def samples() -> list[EncodedSample]:
    """Returns prompts, and a window of text, which has no soft prompt."""
    rng = np.random.default_rng(0)
    words = [rng.integers(1, 50, length).astype(np.int32) for length in (9, 14, 6)]
    prompts = [
        EncodedSample(np.array([*TEMPLATE.soft_ids, *ids], np.int32), TOKENS + len(ids) - 3, 0)
        for ids in words
    ]
    return [*prompts, EncodedSample(words[0], 1, 0)]


def test_it_alone_is_trained_and_packed_samples_are_those_alone() -> None:
    silence_libraries()
    states, losses = [], []
    with single_process_group("gloo"):
        for packed in (True, False):
            engine = Engine(trained(), TrainSettings(zero_stage=0, pack=packed), "fp32")
            assert engine.packed == packed
            before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
            spec = MicroBatchSpec(packed=packed, size=64 if packed else 4)
            for number in range(3):
                batch = collate(samples(), spec, 0)
                losses.append(engine.step([batch], len(batch.targets), 1e-2, number).loss)
            states.append(engine.gather_state().weights)
            after = dict(engine.model.named_parameters())
            assert [n for n in before if not torch.equal(before[n], after[n])] == [*states[-1]]
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5)
    assert losses[2] < losses[0]
    [name] = states[0]
    torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=1e-4)


def test_a_pass_without_it_has_a_gradient_of_zero() -> None:
    """Else the workers of a step would wait for each other."""
    model = trained()
    model(input_ids=WORDS).logits.sum().backward()
    [soft] = adapter.trainable_parameters(model).values()
    assert soft.grad is not None
    assert not soft.grad.any()


def test_it_is_scored_and_decoded_the_fast_way_and_a_text_does_not_see_it() -> None:
    tokenizer = train_tokenizer(["red oak lamp", "steel mug (2)"] * 5, 400, TABLE1)
    model = trained(len(tokenizer)).eval()
    assert choose_scoring(model, 64).notice == ""
    assert choose_decoding(model, 64).fast
    text = "a red oak lamp and a steel mug"
    assert compute_perplexity(model, tokenizer, text, 64) == pytest.approx(
        compute_perplexity(llama(len(tokenizer), spread=3.0).eval(), tokenizer, text, 64)
    )


def test_behaviour_tokens_and_a_soft_prompt_stand_in_one_prompt() -> None:
    model = trained().eval()
    hybrid = HybridModel(model, torch.randn(3, 8), 0).eval()
    ids = with_soft_tokens(torch.tensor([[7, 50 + 2, 20, 50]]))
    embedded = hybrid.embed(ids)
    [soft] = adapter.trainable_parameters(model).values()
    torch.testing.assert_close(embedded[0, :TOKENS], soft)
    items = hybrid.projector(hybrid.get_buffer("items"))
    torch.testing.assert_close(embedded[0, [TOKENS + 1, TOKENS + 3]], items[[2, 0]])


def test_every_prompt_begins_with_it_and_it_counts_as_tokens() -> None:
    titles = ["red oak lamp", "steel mug (2)", "Acme lamp", "old chair"]
    tokenizer = train_tokenizer(titles * 5, 400, TABLE1)
    encoding = build_title_encoding(titles, tokenizer, TEMPLATE)
    assert encoding.title_tokens is not None, encoding.fallback_reason
    plain = build_title_encoding(titles, tokenizer, TABLE1).title_tokens
    assert plain is not None
    for history in ([], [0], [0, 1, 2]):
        ids, _ = CachedPromptEncoder(encoding.title_tokens, 400).encode_prompt(history, [1, 3], 0)
        words, _ = CachedPromptEncoder(plain, 400).encode_prompt(history, [1, 3], 0)
        assert ids == [*TEMPLATE.soft_ids, *words]
        lists = [titles[i] for i in history], [titles[1], titles[3]]
        assert TitleEncoder(tokenizer, 400, TEMPLATE).encode_prompt(*lists, 0)[0] == ids
    limit = len(ids) - 1
    assert CachedPromptEncoder(plain, limit).encode_prompt([0, 1, 2], [1, 3], 0)[1] == 0
    assert CachedPromptEncoder(encoding.title_tokens, limit).encode_prompt(history, [1, 3], 0)[1]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save(trained(), tmp_path)
    with pytest.raises(RunError, match=r"shape \[4, 32\], does not fit the base model.* 64"):
        adapter.load(llama(50, hidden_size=64), tmp_path)
    (tmp_path / PROMPT_FILE).write_text(TABLE1.to_json())
    with pytest.raises(RunError, match=r'4 tokens, and prompts.*put \{"template": "table1\+4"\}'):
        adapter.load(llama(50), tmp_path)
    save(trained(), tmp_path)
    weights = load_file(tmp_path / ADAPTER_WEIGHTS)
    save_file({"other": weights["prompt_embeddings"]}, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(RunError, match="does not fit the base model"):
        adapter.load(llama(50), tmp_path)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    config.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / ADAPTER_CONFIG).read_text())["peft_type"] == "PREFIX_TUNING"
    with pytest.raises(RunError, match="kind PREFIX_TUNING, which adds to what every row begins"):
        adapter.load(llama(50), tmp_path)

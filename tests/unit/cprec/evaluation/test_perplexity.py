"""Perplexity counts every token once, however the text is cut into windows."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.errors import RecipeError
from cprec.encode.prompt import TABLE1
from cprec.evaluation.perplexity import compute_perplexity
from cprec.model import tiny

TEXT = 3 * (
    "Rain fell on the hills, and the river rose. "
    "By noon the bridge was gone; by night so was the road. "
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.train_tokenizer(["oak lamp", "steel mug"], 300, TABLE1)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    network: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return network


def test_perplexity_is_the_exponential_of_the_mean_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert compute_perplexity(model, tokenizer, TEXT, 1024) == pytest.approx(
        math.exp(float(loss)), rel=1e-5
    )


def test_windows_are_independent_and_lose_no_token(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    parts = [str(tokenizer.decode(ids[start : start + 36])) for start in range(0, len(ids), 36)]
    losses = [
        (
            math.log(compute_perplexity(model, tokenizer, part, 1024)),
            len(tokenizer(part, add_special_tokens=False)["input_ids"]),
        )
        for part in parts
    ]
    assert sum(count for _, count in losses) == len(ids)
    mean = sum(loss * count for loss, count in losses) / len(ids)
    assert compute_perplexity(model, tokenizer, TEXT, 37) == pytest.approx(math.exp(mean), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_size_of_the_vocabulary_as_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    blank = LlamaForCausalLM(model.config).eval()
    torch.nn.init.zeros_(blank.lm_head.weight)
    assert compute_perplexity(blank, tokenizer, TEXT, 64) == pytest.approx(len(tokenizer), rel=1e-5)


def test_an_empty_text_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RecipeError, match="0 token"):
        compute_perplexity(model, tokenizer, "", 64)

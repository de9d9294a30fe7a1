"""A behaviour token follows its title and is embedded as its projected item."""

from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cluster.errors import DataError, RunError
from cprec.downstream import hybrid
from cprec.downstream.hybrid import HybridModel, HybridPromptEncoder, Item
from cprec.encode.prompt import TABLE1, TEMPLATES, PromptTemplate
from cprec.model import tiny
from tests.models import llama
from tests.tokenizers import KINDS

WORDS = ["oak", "lamp", "(2)", "steel,", "red", "mug}", "Acme", '3.5"', "🙂", "日本", "</s>", "x "]
TOKENIZER: PreTrainedTokenizerFast = tiny.train_tokenizer(
    ["red oak lamp", "steel mug (2)", "Acme lamp"] * 5, 400, TABLE1
)
VOCABULARY = len(TOKENIZER)
KIND_TOKENIZERS = {
    kind: KINDS[kind]([" ".join(WORDS), *WORDS] * 5)
    for kind in ("byte-level BPE", "BPE with spaces")
}

titles = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
items = st.lists(st.tuples(titles, st.integers(0, 8)), min_size=1, max_size=5)


def model(seed: int = 0) -> PreTrainedModel:
    return cast(
        PreTrainedModel,
        llama(VOCABULARY, seed, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).eval(),
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with spaces"])
@given(items, items)
def test_the_text_is_untouched_and_each_title_is_directly_followed_by_its_item(
    kind: str, template: PromptTemplate, history: list[Item], candidates: list[Item]
) -> None:
    tokenizer = KIND_TOKENIZERS[kind]
    vocabulary = len(tokenizer)
    encoder = HybridPromptEncoder(tokenizer, 4096, vocabulary, template)
    ids, _ = encoder.encode_prompt(history, candidates, 0)
    text = template.render([title for title, _ in history], [title for title, _ in candidates])
    assert tokenizer.decode([token for token in ids if token < vocabulary]) == text
    assert [token - vocabulary for token in ids if token >= vocabulary] == [
        number for _, number in [*history, *candidates]
    ]
    texts_before = []
    for position, token in enumerate(ids):
        if token >= vocabulary:
            text_ids = [t for t in ids[:position] if t < vocabulary]
            texts_before.append(str(tokenizer.decode(text_ids)))
    for (title, _), before in zip([*history, *candidates], texts_before, strict=True):
        assert before.endswith(title)


def test_the_oldest_items_are_dropped_first_and_candidates_never() -> None:
    encoder = HybridPromptEncoder(TOKENIZER, 64, VOCABULARY, TABLE1)
    history: list[Item] = [("red oak lamp", number) for number in range(8)]
    ids, dropped = encoder.encode_prompt(history, [("Acme lamp", 9)], 5)
    assert len(ids) <= 59
    assert 0 < dropped < 8
    assert [t - VOCABULARY for t in ids if t >= VOCABULARY] == [*range(dropped, 8), 9]
    with pytest.raises(DataError, match=r"model\.max_tokens allows 64: raise it .*--allow-change"):
        encoder.encode_prompt([], [("red oak lamp", 1)] * 30, 5)


def test_a_behaviour_token_is_the_projected_item() -> None:
    network = model()
    embeddings = torch.randn(9, 4)
    wrapped = HybridModel(network, embeddings, 0)
    ids = torch.tensor([[5, VOCABULARY + 3, 7, VOCABULARY + 8]])
    embedded = wrapped.embed(ids)[0]
    words = network.get_input_embeddings()
    assert torch.equal(embedded[[0, 2]], words(torch.tensor([5, 7])))
    assert torch.allclose(embedded[[1, 3]], wrapped.projector(embeddings[[3, 8]]), atol=1e-6)
    text = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(wrapped(text).logits, network(text).logits)


def test_the_projector_has_a_gradient_in_every_batch() -> None:
    wrapped = HybridModel(model(), torch.randn(9, 4), 0)
    for ids, has_behaviour in (([[5, 6]], False), ([[5, VOCABULARY]], True)):
        wrapped.zero_grad()
        wrapped(torch.tensor(ids)).logits.sum().backward()
        gradients = [p.grad for p in wrapped.projector.parameters()]
        assert all(g is not None for g in gradients)
        assert bool(sum(float(g.abs().sum()) for g in gradients if g is not None)) is has_behaviour


def test_a_saved_and_loaded_model_gives_equal_logits(tmp_path: Path) -> None:
    wrapped = HybridModel(model(), torch.randn(9, 4), 1).eval()
    weights = {
        name: p.detach().clone() + 0.1
        for name, p in wrapped.named_parameters()
        if name.startswith("projector.")
    }
    hybrid.save(wrapped, weights, tmp_path)
    again = hybrid.load(model(), tmp_path)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if name in weights:
                p.copy_(weights[name])
        ids = torch.tensor([[5, VOCABULARY + 3, 7]])
        assert torch.equal(again(ids).logits, wrapped(ids).logits)
    other = llama(VOCABULARY, hidden_size=32)
    with pytest.raises(RunError, match="does not fit the base model"):
        hybrid.load(cast(PreTrainedModel, other), tmp_path)

"""The tiny base is a plain Hugging Face directory, the same for equal inputs, and knows words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from cluster.errors import DataError
from corpus.ingest.simulation import simulate_shoppers
from corpus.settings import SimulateSettings
from cprec.config.sections.model import TinySettings
from cprec.encode.prompt import TABLE1
from cprec.encode.tokens import TitleEncoder
from cprec.model import tiny

SETTINGS = TinySettings(hidden=32, layers=1, heads=2, vocabulary=800, language_steps=3)
TITLES = [
    title
    for shelf in simulate_shoppers(
        ("Garden", "Games"), SimulateSettings(users=10, items_per_domain=120), seed=0
    ).shelves
    for title in shelf.titles
]
TOKENIZER = tiny.train_tokenizer(TITLES, 800, TABLE1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tiny.build(TITLES, SETTINGS, 0, directory, TABLE1)
    return directory


def test_the_directory_loads_as_any_base(base: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in base.iterdir()
    }
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.vocab_size == len(tokenizer) <= SETTINGS.vocabulary
    assert None not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    TitleEncoder(tokenizer, 2048, TABLE1).encode_sample(TITLES[:10], TITLES[10:30], 3)
    ids = torch.tensor([tokenizer(TABLE1.render(TITLES[:3], TITLES[3:23]))["input_ids"]])
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_equal_inputs_give_equal_files_and_leave_the_global_generator_alone(
    base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny.build(TITLES, SETTINGS, 0, tmp_path / "same", TABLE1)
    assert torch.equal(torch.rand(1), expected)
    tiny.build(TITLES, SETTINGS, 1, tmp_path / "other", TABLE1)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (base / name).read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (
        base / "model.safetensors"
    ).read_bytes()


def test_titles_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="built from the corpus's titles"):
        tiny.build([], SETTINGS, 0, tmp_path, TABLE1)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_a_word_of_a_title_is_one_token() -> None:
    pieces = TOKENIZER(" " + TITLES[0], add_special_tokens=False)["input_ids"]
    assert len(pieces) == len(TITLES[0].split())


@given(
    st.lists(st.sampled_from(TITLES), min_size=1, max_size=10),
    st.lists(st.sampled_from(TITLES), min_size=2, max_size=20),
    st.data(),
)
def test_pieces_equal_the_whole(
    history: list[str], candidates: list[str], data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, len(candidates) - 1))
    sample = TitleEncoder(TOKENIZER, 2048, TABLE1).encode_sample(history, candidates, target)
    whole = TOKENIZER(f"{TABLE1.render(history, candidates)} {candidates[target]}")["input_ids"]
    assert sample.ids.tolist() == [*whole, TOKENIZER.eos_token_id]


def test_text_is_lists_of_titles_and_never_the_prompt() -> None:
    text = tiny.generate_passages(TITLES, np.random.default_rng(0))
    for passage in (next(text) for _ in range(50)):
        listed = passage.removeprefix("Similar items: ").removesuffix(".").split(", ")
        assert len(set(listed)) == len(listed) == tiny.TITLES_PER_LIST
        assert set(listed) <= set(TITLES)
        assert "candidates" not in passage


@pytest.mark.parametrize("titles", [["one"], ["", " "], ["lamp oak", "lamp steel"]])
def test_few_titles_are_text_too(titles: list[str]) -> None:
    passage = next(tiny.generate_passages(titles, np.random.default_rng(0)))
    assert all(title in passage for title in titles)


def test_language_training_learns_and_no_steps_leave_random_weights(tmp_path: Path) -> None:
    tiny.build(TITLES, SETTINGS.model_copy(update={"language_steps": 0}), 0, tmp_path, TABLE1)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert tiny.train(model, TOKENIZER, TITLES, 0, seed=0) == []
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    losses = tiny.train(model, TOKENIZER, TITLES, 30, seed=0)
    assert np.mean(losses[-5:]) < 0.6 * losses[0]

"""Only tokens that can occur need a row of the embedding."""

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RecipeError
from cprec.model import backbone
from tests.unit.cprec.model.bases import edit_json, word_tokenizer, write_base


def write_with_tokens(directory: Path, **added: Any) -> Path:
    """Writes a base whose tokenizer has tokens that its model does not embed."""
    base = write_base(directory)
    tokenizer = word_tokenizer()
    if specials := added.get("specials"):
        tokenizer.add_tokens(specials, special_tokens=True)
    if words := added.get("words"):
        tokenizer.add_tokens(words)
    if pad := added.get("pad"):
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(base)
    return base


@pytest.mark.parametrize(
    "added", [{"specials": ["<image_soft_token>"]}, {"pad": "[PAD]"}, {"words": ["<custom>"]}]
)
def test_added_tokens_that_no_title_makes_do_not_count(
    tmp_path: Path, added: dict[str, Any]
) -> None:
    base = str(write_with_tokens(tmp_path / "base", **added))
    model, tokenizer = backbone.load(base, None, "fp32")
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    plain = word_tokenizer()
    for text in ["blue lamp", "a <image_soft_token> mug", "[PAD]", "<custom> vase", "</s>"]:
        ids = tokenizer.encode(text)
        assert max(ids) < rows
        assert ids == plain.encode(text)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 1)


def test_tokens_that_begin_or_end_texts_must_have_a_row(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(base)
    with pytest.raises(RecipeError, match=r"'<end>' begins or ends texts.*only 280"):
        backbone.load(str(base), None, "fp32")


def test_a_vocabulary_above_the_rows_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_base(tmp_path / "small", vocab_size=200)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "small" / name).replace(base / name)
    with pytest.raises(RecipeError, match=r"has 280 tokens, and its model embeds only 200"):
        backbone.load(str(base), None, "fp32")


def test_added_tokens_with_a_row_stay(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", vocab_size=288)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<custom>"])
    tokenizer.save_pretrained(base)
    edit_json(base / "config.json", pad_token_id=0)
    assert backbone.load_tokenizer(str(base), None).encode("<custom>") == [280]

"""Small bases with random weights, written as Hugging Face directories."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.models import llama

WORDS = "amber blue coral lamp mug chair rug kettle basket clock vase".split()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer of some 280 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def write_base(directory: Path, config: Any = None, **changes: Any) -> Path:
    """Writes a base to a directory and returns it.

    Args:
        directory: Where to write.
        config: Config of the model; by default a LLaMA's, whose output is not tied.
        changes: Settings of the LLaMA that differ from `tests.models`.
    """
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    model = (
        llama(
            changes.pop("vocab_size", len(tokenizer)), **{"tie_word_embeddings": False, **changes}
        )
        if config is None
        else AutoModelForCausalLM.from_config(config)
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def edit_json(path: Path, **values: Any) -> None:
    """Changes fields of a JSON object in a file; a field that becomes None is removed."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

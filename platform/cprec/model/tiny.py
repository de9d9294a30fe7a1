"""The embedded base: a tiny LLaMA and its tokenizer, built from the corpus's titles in well under a minute, nothing downloaded.

The result is a plain Hugging Face directory, so every path of the platform treats it as it treats LLaMA-2-7B.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.errors import DataError
from cprec.config.recipe import TinySettings
from cprec.encode import prompt
from cprec.model import tiny_training
from cprec.model.library_logging import silence_libraries

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<s>", "</s>", "<pad>"
MAX_POSITIONS = 2048


def build(titles: Sequence[str], settings: TinySettings, seed: int, directory: Path) -> None:
    """Write base and tokenizer to a directory (config.json, model.safetensors, tokenizer.json, tokenizer_config.json).

    titles: of every item the model will meet; behaviours are not seen. Equal (titles, settings, seed) give equal files on one kind of machine.
    Raises DataError without titles.
    """
    if not titles:
        raise DataError(
            "the tiny base is built from the corpus's titles, and there are none; build the corpus first"
        )
    silence_libraries()
    tokenizer = train_tokenizer(titles, settings.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_llama_config(settings, tokenizer))
    tiny_training.train(model, tokenizer, titles, settings.language_steps, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train_tokenizer(titles: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the titles and the prompt's fixed words: any text round-trips, a frequent word is one token, no token crosses a space.

    vocabulary: tokens at most, the 256 bytes and the three special tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [f"{before}{title}" for title in titles for before in (" ", "{")]
    frame = [prompt.OPENING, prompt.MIDDLE, prompt.CLOSING, prompt.SEPARATOR]
    tokenizer.train_from_iterator([*texts, *frame * len(titles)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, tokenizer.token_to_id(BOS_TOKEN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def _llama_config(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden * 8 // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        initializer_range=settings.hidden**-0.5,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

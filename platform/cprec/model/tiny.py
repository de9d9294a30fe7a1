"""Builds the tiny base: a small LLaMA and its tokenizer, made from the titles of a corpus.

Nothing is downloaded, and building takes well under a minute. The result is a plain Hugging Face
directory, which the platform treats as it treats LLaMA-2-7B.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.errors import DataError
from cluster.progress import Advance, unseen
from corpus.sampling.prompt_text import SEPARATOR
from cprec.config.sections.model import TinySettings
from cprec.encode.prompt import PromptTemplate
from cprec.model import tiny_training
from cprec.model.libraries import silence_libraries

BOS = "<s>"
EOS = "</s>"
PAD = "<pad>"
MAX_POSITIONS = 2048
"""Longest text, in tokens, that the model takes."""


def build(
    titles: Sequence[str],
    settings: TinySettings,
    seed: int,
    directory: Path,
    template: PromptTemplate,
    advance: Advance = unseen,
) -> None:
    """Builds the tiny base and writes it to a directory.

    The files are config.json, model.safetensors, tokenizer.json and tokenizer_config.json. Equal
    titles, settings and seed give equal files on one kind of machine.

    Args:
        titles: Titles of all items that the model will meet. Interactions of users are not used.
        settings: The recipe's section `tiny`.
        seed: Seed of the weights and of the language training.
        directory: Where to write.
        template: Template of the prompts, whose words the tokenizer learns.
        advance: Is called with 1 after each step of the language training.

    Raises:
        DataError: There are no titles.
    """
    if not titles:
        raise DataError(
            "the tiny base is built from the corpus's titles, and there are none; "
            "build the corpus first"
        )
    silence_libraries()
    tokenizer = train_tokenizer(titles, settings.vocabulary, template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_llama_config(settings, tokenizer))
    tiny_training.train(model, tokenizer, titles, settings.language_steps, seed, advance)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train_tokenizer(
    titles: Sequence[str], vocab_size: int, template: PromptTemplate
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on titles and the prompt's fixed words.

    Any text can be encoded and decoded unchanged. A frequent word is one token, and no token
    crosses a space.

    Args:
        titles: Titles to train on.
        vocab_size: Largest number of tokens, the 256 bytes and 3 special tokens included.
        template: Template of the prompts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # In a prompt a title follows a space, or what opens a list.
    befores = dict.fromkeys((" ", template.opening or " "))
    texts = [f"{before}{title}" for title in titles for before in befores]
    prompt_texts = [*template.fixed_texts, SEPARATOR]
    tokenizer.train_from_iterator([*texts, *prompt_texts * len(titles)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def _llama_config(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Returns the model's configuration, with tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden * 8 // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        # With LLaMA's 0.02 the model learns too little (docs/negative-results.md).
        initializer_range=settings.hidden**-0.5,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

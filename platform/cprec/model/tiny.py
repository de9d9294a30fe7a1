"""Builds the tiny base: a small LLaMA and its tokenizer, made from the titles of a corpus.

Nothing is downloaded, and building takes well under a minute. The result is a plain Hugging Face
directory, which the platform treats as it treats LLaMA-2-7B.

A short language training gives LoRA something to adapt: through LoRA, a frozen random base learns
little. Its text is made from titles alone: lists of similar items. It teaches the words, their
order, and that words recur within one text. It holds no prompt, no candidates to choose from, and
nothing that any user did.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.errors import DataError
from cluster.progress import Advance, unseen
from corpus.sampling.prompt_text import SEPARATOR
from cprec.config.sections.model import TinySettings
from cprec.encode.prompt import PromptTemplate
from cprec.model.libraries import silence_libraries

BOS = "<s>"
EOS = "</s>"
PAD = "<pad>"
MAX_POSITIONS = 2048
"""Longest text, in tokens, that the model takes."""
ROWS_PER_STEP = 8
"""Rows of one optimizer step."""
TOKENS_PER_ROW = 128
"""Tokens of one row."""
LR_MAX = 1e-2
"""Learning rate after a tenth of the steps, from which a cosine falls to zero."""
TITLES_PER_LIST = 8
"""Titles in one list of similar items."""
MAX_TITLES = 4096
"""Largest number of titles used: enough to teach the words, and quick to search."""


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
    train(model, tokenizer, titles, settings.language_steps, seed, advance)
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


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    titles: Sequence[str],
    steps: int,
    seed: int,
    advance: Advance = unseen,
) -> list[float]:
    """Trains every weight on generated product text, in place.

    Args:
        model: The model; it is left in evaluation mode.
        tokenizer: Its tokenizer.
        titles: Titles that the text is made from.
        steps: Number of optimizer steps.
        seed: Seed of the text.
        advance: Is called with 1 after each step.

    Returns:
        The loss of each step, in nats per token.
    """
    stream = _token_stream(
        generate_passages(titles, np.random.default_rng([seed, 0x1A46])), tokenizer
    )
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    losses = []
    model.train()
    with _single_thread():
        for step in range(steps):
            rows = torch.tensor(
                [[next(stream) for _ in range(TOKENS_PER_ROW)] for _ in range(ROWS_PER_STEP)]
            )
            loss = model(input_ids=rows, labels=rows, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = _lr(step / steps)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            advance(1)
    model.eval()
    return losses


def generate_passages(titles: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Yields product text without end: lists of titles that share words.

    A list holds the titles that share most words with one title drawn at random. With titles that
    shared a single word, the model stayed at word frequencies and did not learn to copy
    (docs/negative-results.md).

    Args:
        titles: Titles to draw from; at most `MAX_TITLES` of them are used.
        rng: Source of all draws.
    """
    titles = [titles[i] for i in rng.permutation(len(titles))[:MAX_TITLES]]
    words_by_title = [sorted(set(title.split())) for title in titles]
    titles_by_word = defaultdict(list)
    for index, words in enumerate(words_by_title):
        for word in words:
            titles_by_word[word].append(index)
    list_length = min(TITLES_PER_LIST, len(titles))
    while True:
        drawn = int(rng.integers(len(titles)))
        # Every title once for each word that it shares with the drawn one.
        sharing = np.concatenate(
            [
                np.zeros(0, dtype=np.int64),
                *(titles_by_word[word] for word in words_by_title[drawn]),
            ]
        )
        # Noise below 1 breaks ties at random.
        shared_words = np.bincount(sharing.astype(np.int64), minlength=len(titles))
        similarity = shared_words + rng.random(len(titles))
        similar = rng.permutation(np.argsort(-similarity)[:list_length])
        yield f"Similar items: {', '.join(titles[i] for i in similar)}."


@contextmanager
def _single_thread() -> Iterator[None]:
    """Limits torch to one thread, so that sums do not depend on the number of cores.

    A model this small gains nothing from a second thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _lr(progress: float) -> float:
    """Returns the learning rate after a fraction of the steps: linear warmup, then a cosine."""
    warmup = 0.1
    return LR_MAX * (
        progress / warmup
        if progress < warmup
        else (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    )


def _token_stream(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    """Yields the token ids of all texts, each opened and closed by the tokenizer's tokens."""
    for text in texts:
        yield from tokenizer(text)["input_ids"]
        yield int(tokenizer.eos_token_id)

"""A short language training for the tiny base.

It gives LoRA something to adapt: through LoRA, a frozen random base learns little.

The text is made from titles alone: lists of similar items. It teaches the words, their order, and
that words recur within one text. It holds no prompt, no candidates to choose from, and nothing that
any user did.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.progress import Advance, unseen

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

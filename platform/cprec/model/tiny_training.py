"""A short language training for the tiny base, so that LoRA finds something to adapt: a frozen random base learns little through it.

The text is made from titles alone: lists of similar items. It teaches the words, their order, and that words recur within one text. It holds no
prompt, no candidates to choose from, and nothing that any user did.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROWS_PER_STEP, TOKENS_PER_ROW = 8, 128
"""Rows of a step, and tokens of a row."""
LR_MAX = 1e-2
"""Learning rate after a tenth of the steps; a cosine leads from there to zero."""
TITLES_PER_LIST = 8
"""Titles of a list."""
MAX_TITLES = 4096
"""Titles that are used, at most: enough for the words, and a list of similar ones stays quick to find."""


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    titles: Sequence[str],
    steps: int,
    seed: int,
) -> list[float]:
    """Train every weight on generated product text, in place. Returns the loss of each step, in nats per token."""
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
    model.eval()
    return losses


def generate_passages(titles: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Product text without end: lists of titles that share more words with one title than the others do.

    Titles that share a single word were not enough: the model stayed at word frequencies and learned to copy nothing (docs/log.md).
    """
    titles = [titles[i] for i in rng.permutation(len(titles))[:MAX_TITLES]]
    words = [sorted(set(title.split())) for title in titles]
    holders = defaultdict(list)
    for row, title_words in enumerate(words):
        for word in title_words:
            holders[word].append(row)
    listed = min(TITLES_PER_LIST, len(titles))
    while True:
        one = int(rng.integers(len(titles)))
        holding = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(holders[word] for word in words[one])]
        )
        shared = np.bincount(holding.astype(np.int64), minlength=len(titles)) + rng.random(
            len(titles)
        )
        similar = rng.permutation(np.argsort(-shared)[:listed])
        yield f"Similar items: {', '.join(titles[i] for i in similar)}."


@contextmanager
def _single_thread() -> Iterator[None]:
    """Sums do not depend on the number of cores then, and a model this small gains nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _lr(progress: float) -> float:
    """Learning rate after a share of the steps."""
    warmup = 0.1
    return LR_MAX * (
        progress / warmup
        if progress < warmup
        else (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    )


def _token_stream(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    """Passages as one stream of token ids, each begun and ended."""
    for text in texts:
        yield from tokenizer(text)["input_ids"]
        yield int(tokenizer.eos_token_id)

"""A short language training for the tiny base, so that LoRA finds something to adapt: a frozen random base learns little through it.

The text is about products and made from titles alone: shelves of titles that share a word, stock lists that repeat titles. It teaches words,
agreement and copying. It holds no prompt, no candidates to choose from, and nothing that any user did.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SHELF = 8
"""Titles of a passage."""
MOST_TITLES = 4096
LENGTH = 128
"""Tokens of a row."""
BATCH = 8
"""Rows of a step."""
RATE = 1e-2


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, titles: Sequence[str], steps: int, seed: int) -> list[float]:
    """Train every weight on generated product text, in place. Returns the loss of each step, in nats per token."""
    text = _tokens(passages(titles, np.random.default_rng([seed, 0x1A46])), tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(steps, 1), pct_start=0.1)
    losses = []
    model.train()
    for _ in range(steps):
        rows = torch.tensor([[next(text) for _ in range(LENGTH)] for _ in range(BATCH)])
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def passages(titles: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Lists of similar items without end: each title shares more words with the first one than most titles do."""
    titles = [titles[i] for i in rng.permutation(len(titles))[:MOST_TITLES]]
    words = {word: column for column, word in enumerate(sorted({word for title in titles for word in title.split()}))}
    holds = np.zeros((len(titles), len(words)), dtype=np.float32)
    for row, title in enumerate(titles):
        holds[row, [words[word] for word in title.split()]] = 1
    while True:
        first = rng.integers(len(titles))
        shared = holds @ holds[first] + rng.random(len(titles), dtype=np.float32)
        similar = rng.permutation(np.argpartition(-shared, SHELF)[:SHELF])
        yield f"Similar items: {', '.join(titles[i] for i in similar)}."


def _tokens(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    """Passages as one stream of token ids, each begun and ended."""
    for text in texts:
        yield from tokenizer(text)["input_ids"]
        yield tokenizer.eos_token_id

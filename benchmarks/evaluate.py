"""Evaluating by scoring all candidates in one pass against generating five times (generate, remove the item, generate again), users per second.

    python benchmarks/evaluate.py

Random weights: what is compared is work, not quality. Generation is held to the candidates, so that every answer is a title and ends where titles
end; left free, random weights would go on to the limit of 64 tokens and look slower than a trained model is. Both ways run interleaved; medians are
printed.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
for root in (ROOT, ROOT / "platform"):
    sys.path.insert(0, str(root))

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from corpus.settings import SimulateSettings
from corpus.ingest.simulation import simulate_shoppers
from cprec.evaluate.generation import generate_answers
from cprec.evaluate.candidate_scoring import score_samples
from cprec.model import tiny
from cprec.encode.title_tokens import UncachedPromptEncoder
from cprec.encode.tokens import TitleEncoder

USERS, ROUNDS, BATCH, HIDDEN, LAYERS = 8, 3, 8, 128, 2


def main() -> None:
    """Print one line."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    titles = list(simulate_shoppers(["Games"], SimulateSettings(users=10), 0).shelves[0].titles)
    tokenizer = tiny.train_tokenizer(titles, 1024)
    encoder = UncachedPromptEncoder(titles, TitleEncoder(tokenizer, 2048))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 8 // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        max_position_embeddings=2048,
    )
    model = cast(PreTrainedModel, LlamaForCausalLM(config).eval())
    samples = pa.table(
        {
            "history": [rng.integers(0, len(titles), 10).tolist() for _ in range(USERS)],
            "candidates": [rng.permutation(len(titles))[:20].tolist() for _ in range(USERS)],
        }
    )
    ways: dict[str, Callable[[], Any]] = {
        "score": lambda: score_samples(model, encoder, samples, BATCH),
        "generate": lambda: generate_answers(
            model, tokenizer, encoder, samples, titles, BATCH, constrained=True
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            rates[name].append(USERS / (time.perf_counter() - began))
    ours, peer = median(rates["score"]), median(rates["generate"])
    print(f"evaluate_users_per_s {ours:.2f} {peer:.2f} {ours / peer:.1f}")


if __name__ == "__main__":
    main()

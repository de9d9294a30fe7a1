"""Compares scoring all candidates in one pass with generating five times, in users per second.

    python benchmarks/evaluate.py

Generating five times means: generate an answer, remove that item, generate again. The weights are
random, because only speed is compared. Generation is constrained to the candidates, so that every
answer is a title and ends where the title ends. Unconstrained, random weights would generate up to
the limit of 64 tokens and look slower than a trained model. Both run in interleaved rounds; medians
are printed as `evaluate_users_per_s scoring generating ratio`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from corpus.ingest.simulation import simulate_shoppers
from corpus.settings import SimulateSettings
from cprec.encode.title_encoding import UncachedPromptEncoder
from cprec.encode.tokens import TitleEncoder
from cprec.evaluate.candidate_scoring import score_samples
from cprec.evaluate.generation import generate_answers
from cprec.model import tiny

USERS = 8
ROUNDS = 3
BATCH = 8
HIDDEN = 128
LAYERS = 2


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
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
    contenders: dict[str, Callable[[], Any]] = {
        "score": lambda: score_samples(model, encoder, samples, BATCH),
        "generate": lambda: generate_answers(
            model, tokenizer, encoder, samples, titles, BATCH, constrained=True
        ),
    }
    users_per_s: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, evaluate in contenders.items():
            began = time.perf_counter()
            evaluate()
            users_per_s[name].append(USERS / (time.perf_counter() - began))
    ours = median(users_per_s["score"])
    peer = median(users_per_s["generate"])
    print(f"evaluate_users_per_s {ours:.2f} {peer:.2f} {ours / peer:.1f}")


if __name__ == "__main__":
    main()

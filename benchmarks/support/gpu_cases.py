"""What the benchmark of one GPU measures: shapes of models, cases, and the samples of each."""

from dataclasses import dataclass

import numpy as np

from support import workload
from cprec.encode.tokens import EncodedSample
from cprec.evaluation.candidate_rows import Query

SHAPES = {
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "135m": {**workload.SMOLLM2_SHAPE, "tie_word_embeddings": True},
    "toy": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
TRAINING, SCORING, RESUME = "training", "scoring", "resume"


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        shape: Name of the model's shape in `SHAPES`.
        kind: TRAINING, SCORING of candidates, or a save and a RESUME.
        rank: Rank of LoRA; 0 for full training.
        fp8: Whether the frozen base is in FP8.
        unit: Unit of the rate.
        target: The rate that one H200 is to reach; 0 for none.
    """

    shape: str
    kind: str = TRAINING
    rank: int = 0
    fp8: bool = False
    unit: str = "useful tokens/s"
    target: int = 0


CASES = {
    "7b-bf16": Case("7b", rank=8, target=20_000),
    "7b-fp8": Case("7b", rank=8, fp8=True, target=28_000),
    "135m-lora": Case("135m", rank=16, target=300_000),
    "135m-full": Case("135m", target=350_000),
    "135m-scoring": Case("135m", SCORING, unit="users/s", target=2_500),
    "135m-resume": Case("135m", RESUME, unit="GB/s saved"),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and with which settings.

    Attributes:
        batch: Samples of a global batch.
        steps: Steps that count.
        pack_tokens: Tokens of a packed row; None for the platform's choice.
        shortest: Tokens of the shortest sample.
        spread: Mean of the tokens beyond that, which are exponential.
        longest: Tokens of the longest sample.
        answer: Tokens of an answer.
        users: Users that are scored.
        queries_per_pass: Users of a pass, at most.
        compile: Whether layers are compiled.
        recompute: Whether activations are recomputed: auto, always or never.
    """

    batch: int = 128
    steps: int = 4
    pack_tokens: int | None = None
    shortest: int = 460
    spread: int = 240
    longest: int = 1880
    answer: int = 26
    users: int = 4000
    queries_per_pass: int = 48
    compile: bool = True
    recompute: str = "auto"


CANDIDATES = 20
TOY = {
    "batch": 8,
    "steps": 2,
    "pack_tokens": 256,
    "shortest": 20,
    "spread": 12,
    "longest": 60,
    "answer": 5,
    "users": 12,
    "queries_per_pass": 4,
}
"""Sizes for a CPU."""


def make_samples(sizes: Sizes, count: int, vocabulary: int) -> list[EncodedSample]:
    """Returns samples of random tokens with the lengths of Amazon prompts."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(sizes.shortest + rng.exponential(sizes.spread, count), sizes.longest)
    return [
        EncodedSample(rng.integers(3, vocabulary, n).astype(np.int32), n - sizes.answer, 0)
        for n in lengths.astype(int).tolist()
    ]


def make_queries(sizes: Sizes, vocabulary: int) -> list[Query]:
    """Returns prompts and candidates of random tokens; answers have 0.3 to 1.7 of `answer`."""
    rng = np.random.default_rng(1)
    spread = (max(1, round(0.3 * sizes.answer)), round(1.7 * sizes.answer))
    return [
        Query(
            sample.ids[: sample.answer_start].tolist(),
            [
                rng.integers(3, vocabulary, length).tolist()
                for length in rng.integers(*spread, CANDIDATES)
            ],
        )
        for sample in make_samples(sizes, sizes.users, vocabulary)
    ]

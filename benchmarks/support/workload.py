"""What the training benchmarks share.

Samples of a corpus as tokens, a small model with LoRA, a process group, and ratios of interleaved
rounds.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
PYTHON_PATH = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "platform")])
"""Where other processes find the packages and the benchmarks."""

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from cprec.encode.prompt import TABLE1
from cprec.config.sections.model import ModelSettings
from cprec.encode.title_tokens import CachedPromptEncoder, TitleTokens, tokenise_titles
from cprec.encode.tokens import EncodedSample
from cprec.model import adapter, tiny
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens


SMOLLM2_SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""Shape of SmolLM2-135M."""


@dataclass(frozen=True)
class Workload:
    """Samples to train on, with what turns them into tokens.

    Attributes:
        titles: Titles of all items of the corpus.
        rows: Corpus rows of one source, in their order.
        tokenizer: The tokenizer of the model.
        title_tokens: The titles, tokenised.
    """

    titles: list[str]
    rows: pa.Table
    tokenizer: PreTrainedTokenizerBase
    title_tokens: TitleTokens

    @classmethod
    def from_corpus(
        cls, corpus_uri: str, num_samples: int, vocabulary: int, tokenizer_folder: str | None
    ) -> "Workload":
        """Reads the first training samples of a corpus's first domain.

        Args:
            corpus_uri: The corpus.
            num_samples: Number of samples, at most.
            vocabulary: Size of the byte-level tokenizer that is trained on the titles.
            tokenizer_folder: Directory of a tokenizer to use instead.
        """
        from corpus.store.tables import Corpus  # benchmarks/gpu.py runs where Delta is missing

        corpus = Corpus.open(corpus_uri)
        titles = corpus.read_titles()
        source = corpus.streams()[0].source
        tokenizer = (
            AutoTokenizer.from_pretrained(tokenizer_folder)
            if tokenizer_folder
            else tiny.train_tokenizer(titles, vocabulary, TABLE1)
        )
        rows = corpus.read_samples(source, "train").slice(0, num_samples)
        return cls(titles, rows, tokenizer, tokenise_titles(titles, tokenizer, TABLE1))

    def encode_samples(self, max_tokens: int = 2048) -> list[EncodedSample]:
        """Returns every sample as tokens, stitched from the tokenised titles."""
        return CachedPromptEncoder(self.title_tokens, max_tokens).encode_samples(self.rows)


def build_model(vocabulary: int, hidden: int, layers: int, seed: int = 0) -> torch.nn.Module:
    """Builds a LLaMA of random weights with LoRA as the recipe attaches it, without dropout."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 32, 1),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return adapter.attach(LlamaForCausalLM(config), ModelSettings(lora_dropout=0.0), seed)


def worker_batches(
    samples: Sequence[EncodedSample], global_batch_size: int, rank: int = 0, world_size: int = 1
) -> list[WorkerBatch]:
    """Returns one worker's part of each global batch of the samples."""
    batches = []
    for start in range(0, len(samples), global_batch_size):
        batch_samples = samples[start : start + global_batch_size]
        indices_by_rank = split_by_tokens([len(s.ids) for s in batch_samples], world_size)
        lengths_by_rank = tuple(
            tuple(len(batch_samples[i].ids) for i in indices) for indices in indices_by_rank
        )
        global_batch = GlobalBatch(
            start=start,
            stop=start + len(batch_samples),
            supervised_tokens=sum(len(s.ids) - s.answer_start for s in batch_samples),
            num_tokens=sum(map(sum, lengths_by_rank)),
            ids_digest=0,
            samples_by_source={},
        )
        batches.append(
            WorkerBatch(
                global_batch,
                rank,
                lengths_by_rank,
                np.array(indices_by_rank[rank], dtype=np.uint64),
                tuple(batch_samples[i] for i in indices_by_rank[rank]),
            )
        )
    return batches


def init_single_process_group(backend: str = "gloo") -> None:
    """Starts a process group of this process alone, which the engine needs."""
    if backend == "gloo":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.NamedTemporaryFile(delete=False) as file:
        dist.init_process_group(
            backend, init_method=f"file://{file.name}.store", rank=0, world_size=1
        )


def run_interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Runs all contenders in turn, once per round, after a round of warm-up that does not count.

    Args:
        contenders: By name, a function that does the work and returns its seconds.
        rounds: Number of rounds that count.

    Returns:
        The seconds of each contender, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            elapsed = run()
            if round_number:
                seconds[name].append(elapsed)
    return seconds


def cpu_seconds(work: Callable[[], object]) -> float:
    """Returns the CPU seconds of one call, which depend little on other work on the machine."""
    began = time.process_time()
    work()
    return time.process_time() - began


def format_comparison(
    name: str, ours: Sequence[float], peer: Sequence[float], amount: float, unit: str
) -> str:
    """Formats the line `name ours peer ratio`.

    Args:
        name: What is compared.
        ours: Our seconds, one per round.
        peer: The peer's seconds in the same rounds.
        amount: Amount of work in a round.
        unit: Unit of the amount per second.

    Returns:
        The rates of the median rounds, and the median of the rounds' ratios with their range.
    """
    ratios = sorted(b / a for a, b in zip(ours, peer, strict=True))
    our_rate, peer_rate = (amount / statistics.median(seconds) for seconds in (ours, peer))
    return (
        f"{name:<46} {our_rate:>12,.0f} {peer_rate:>12,.0f} {unit}"
        f"  ratio {statistics.median(ratios):6.2f}  ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
    )

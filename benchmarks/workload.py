"""What the training benchmarks have in common: samples of a corpus, a small model with LoRA, a process group, ratios from interleaved rounds."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
PATH = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "platform")])
"""Where other processes find the packages and the benchmarks."""

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from corpus.store.tables import Corpus
from cprec.model import adapter, tiny
from cprec.config.recipe import ModelSettings
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens
from cprec.encode.title_tokens import CachedPromptEncoder, TitleTokens, tokenise_titles
from cprec.encode.tokens import EncodedSample


@dataclass(frozen=True)
class Workload:
    """rows: corpus rows of one source, in its order; tokens: their titles, tokenised."""

    titles: list[str]
    rows: pa.Table
    tokenizer: PreTrainedTokenizerBase
    tokens: TitleTokens

    @classmethod
    def of(cls, corpus: str, samples: int, vocabulary: int, tokenizer: str | None) -> "Workload":
        """Samples of the corpus's first domain. tokenizer: a directory; else a byte-level one is trained on the titles."""
        opened = Corpus.open(corpus)
        titles = opened.read_titles()
        source = opened.streams()[0].source
        words = (
            AutoTokenizer.from_pretrained(tokenizer)
            if tokenizer
            else tiny.train_tokenizer(titles, vocabulary)
        )
        return cls(
            titles,
            opened.read_samples(source, "train").slice(0, samples),
            words,
            tokenise_titles(titles, words),
        )

    def samples(self, max_tokens: int = 2048) -> list[EncodedSample]:
        """Every sample as tokens, stitched."""
        return CachedPromptEncoder(self.tokens, max_tokens).encode_samples(self.rows)


def model(vocabulary: int, hidden: int, layers: int, seed: int = 0) -> torch.nn.Module:
    """A LLaMA of random weights with LoRA r = 8 on all linear layers, as the recipe makes it, without dropout."""
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


def shares(
    samples: Sequence[EncodedSample], batch: int, rank: int = 0, world: int = 1
) -> list[WorkerBatch]:
    """One worker's shares of the samples, in global batches."""
    found = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        dealt = split_by_tokens([len(s.ids) for s in part], world)
        lengths = tuple(tuple(len(part[i].ids) for i in one) for one in dealt)
        whole = GlobalBatch(
            start,
            start + len(part),
            sum(len(s.ids) - s.answer_start for s in part),
            sum(map(sum, lengths)),
            0,
            {},
        )
        found.append(
            WorkerBatch(
                whole,
                rank,
                lengths,
                np.array(dealt[rank], dtype=np.uint64),
                tuple(part[i] for i in dealt[rank]),
            )
        )
    return found


def alone(backend: str = "gloo") -> None:
    """A process group of this process, as the engine asks for one."""
    if backend == "gloo":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.NamedTemporaryFile(delete=False) as meeting:
        dist.init_process_group(
            backend, init_method=f"file://{meeting.name}.store", rank=0, world_size=1
        )


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every way once per round, in turn, after one round that warms up and does not count. A way returns its seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            taken = way()
            if turn:
                seconds[name].append(taken)
    return seconds


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of one call: what it takes on a core of its own, however busy the machine is."""
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(
    name: str, ours: Sequence[float], peer: Sequence[float], amount: float, unit: str
) -> str:
    """`name ours peer ratio`: rates of the medians, and the median of the ratios of neighbouring rounds with their range."""
    ratios = sorted(b / a for a, b in zip(ours, peer, strict=True))
    rates = [amount / statistics.median(seconds) for seconds in (ours, peer)]
    return f"{name:<46} {rates[0]:>12,.0f} {rates[1]:>12,.0f} {unit}  ratio {statistics.median(ratios):6.2f}  ({ratios[0]:.2f} .. {ratios[-1]:.2f})"

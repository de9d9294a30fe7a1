"""Compares training on a CPU with a padded loop and with TRL's packing, in useful tokens/s.

    python benchmarks/train.py --corpus out/corpus
    python benchmarks/train.py --corpus out/corpus --trl .venv-trl/bin/python

The environment of TRL is made from benchmarks/peers/requirements-trl.txt. Also compares the
building of prompts, and shows how much of the gain is packing's alone.

All contenders train the same model (LoRA r = 8) in fp32 on the same samples, with one optimizer
step per global batch. Useful tokens are those of samples, never padding. Rounds are interleaved,
and seconds are CPU seconds on --threads threads. Each line is `what ours peer ratio`.
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support import workload  # first: it makes the packages importable
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cprec.encode.prompt import TABLE1
from cprec.config.sections.pretraining import TrainSettings
from cprec.encode.title_tokens import CachedPromptEncoder
from cprec.model.kernels import attention
from cprec.stream.packing import MicroBatch, MicroBatchSpec, build_micro_batches
from cprec.stream.segments import SAMPLES_PER_READ_TASK
from cprec.train.engine import Engine

TRL_ENVIRONMENT = dict(os.environ)
"""The environment before DeepSpeed adds variables that make other trainers expect more workers."""

OURS = "ours"
PACKING_ALONE = "packing alone"
LR = 1e-4


def train_ours(work: workload.Workload, options: argparse.Namespace) -> Callable[[], float]:
    """Returns a round of ours: stitched, packed, few logits, in the engine that a run has."""
    engine = Engine(build_model(work, options), TrainSettings(zero_stage=0), "fp32")
    spec = MicroBatchSpec(packed=True, size=options.pack_tokens)

    def train_once() -> None:
        for batch in workload.worker_batches(work.encode_samples(), options.batch):
            micro_batches = build_micro_batches(batch, spec, work.title_tokens.eos_token_id)
            engine.step(micro_batches, batch.global_batch.supervised_tokens, LR, 0)

    return lambda: workload.cpu_seconds(train_once)


def train_packing_alone(
    work: workload.Workload, options: argparse.Namespace
) -> Callable[[], float]:
    """Returns a round that packs as ours does, and has all else of transformers and PEFT."""
    model = build_model(work, options)
    attention.enable_packing(model)
    optimizer = build_optimizer(model)
    spec = MicroBatchSpec(packed=True, size=options.pack_tokens)

    def sum_loss(batch: MicroBatch) -> torch.Tensor:
        bounds = attention.packed_arguments(
            torch.from_numpy(batch.bounds), int(np.diff(batch.bounds).max())
        )
        ids = torch.from_numpy(batch.input_ids)
        positions = torch.from_numpy(batch.position_ids)
        logits = model(input_ids=ids, position_ids=positions, use_cache=False, **bounds).logits
        labels = torch.full(ids.shape, -100)
        labels[torch.from_numpy(batch.supervised_mask)] = torch.from_numpy(batch.targets)
        return cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), reduction="sum")

    def train_once() -> None:
        for batch in workload.worker_batches(work.encode_samples(), options.batch):
            for micro_batch in build_micro_batches(batch, spec, work.title_tokens.eos_token_id):
                (sum_loss(micro_batch) / batch.global_batch.supervised_tokens).backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: workload.cpu_seconds(train_once)


def train_padded(work: workload.Workload, options: argparse.Namespace) -> Callable[[], float]:
    """Returns a round of a Hugging Face model in the loop of LLaRA's public code.

    Prompts are tokenised in the loop, each micro-batch is padded to its longest sample, and the
    logits of every token are computed.
    """
    model = build_model(work, options)
    optimizer = build_optimizer(model)
    tokenizer = work.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    texts = render_prompts(work)

    def mean_loss(pairs: list[tuple[str, str]]) -> torch.Tensor:
        batch = tokenizer(
            [f"{text} {answer}{tokenizer.eos_token}" for text, answer in pairs],
            padding="longest",
            return_tensors="pt",
        )
        prompt_ids = tokenizer([text for text, _ in pairs])["input_ids"]
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, ids in enumerate(prompt_ids):
            labels[row, : len(ids)] = -100
        return model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss

    def train_once() -> None:
        for start in range(0, len(texts), options.batch):
            stop = start + options.batch
            for low in range(start, min(stop, len(texts)), options.micro_batch):
                pairs = texts[low : min(low + options.micro_batch, stop)]
                (mean_loss(pairs) * len(pairs) / options.batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: workload.cpu_seconds(train_once)


@contextmanager
def train_trl(
    work: workload.Workload, options: argparse.Namespace
) -> Iterator[Callable[[], float]]:
    """Starts TRL in a process of its own; yields a function that runs one round there."""
    samples = work.encode_samples()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lora_model = build_model(work, options)
        without_lora(lora_model.get_base_model()).save_pretrained(folder / "model")
        work.tokenizer.save_pretrained(folder / "model")
        batch_tokens = sum(len(s.ids) for s in samples[: options.batch])
        np.savez(
            folder / "samples.npz",
            ids=np.concatenate([s.ids for s in samples]),
            lengths=[len(s.ids) for s in samples],
            answers=[s.answer_start for s in samples],
            pack_tokens=options.pack_tokens,
            rows=-(-batch_tokens // options.pack_tokens),
            threads=torch.get_num_threads(),
        )
        command = [options.trl, str(Path(__file__).parent / "peers" / "trl_sft.py"), str(folder)]
        with (
            (folder / "errors").open("w") as errors,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=TRL_ENVIRONMENT,
            ) as process,
        ):
            assert process.stdin
            assert process.stdout

            def train_once() -> float:
                process.stdin.write("go\n")
                process.stdin.flush()
                for line in process.stdout:
                    if line.startswith("SECONDS"):
                        return float(line.split()[1])
                raise RuntimeError((folder / "errors").read_text()[-2000:])

            yield train_once
            process.stdin.close()


def without_lora(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a model with the same base weights and no LoRA layers."""
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM(model.config)
    weights = {
        name.replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
        if "lora_" not in name
    }
    plain.load_state_dict(weights)
    return plain


def build_model(work: workload.Workload, options: argparse.Namespace) -> torch.nn.Module:
    """Builds the model that all contenders train."""
    return workload.build_model(len(work.tokenizer), options.hidden, options.layers)


def build_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Builds PyTorch's AdamW over the weights that are trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)


def render_prompts(work: workload.Workload) -> list[tuple[str, str]]:
    """Returns prompt and answer of every sample as text."""
    texts = []
    for row in work.rows.select(["history", "candidates", "target"]).to_pylist():
        history = [work.titles[item] for item in row["history"]]
        candidates = [work.titles[item] for item in row["candidates"]]
        texts.append((TABLE1.render(history, candidates), candidates[row["target"]]))
    return texts


def compare_prompt_building(options: argparse.Namespace) -> str:
    """Compares stitching the samples of a read task with one call of the tokenizer on their texts.

    Rendering the texts does not count.
    """
    work = workload.Workload.from_corpus(
        options.corpus, SAMPLES_PER_READ_TASK, options.vocabulary, options.tokenizer
    )
    texts = [f"{text} {answer}" for text, answer in render_prompts(work)]
    encoder = CachedPromptEncoder(work.title_tokens, 2048)
    contenders = {
        OURS: lambda: workload.cpu_seconds(lambda: encoder.encode_samples(work.rows)),
        "peer": lambda: workload.cpu_seconds(lambda: work.tokenizer(texts)),
    }
    seconds = workload.run_interleaved(contenders, 2 * options.rounds)
    tokens = sum(len(s.ids) for s in work.encode_samples())
    return workload.format_comparison(
        "prompt building: tokenizer(batch)", seconds[OURS], seconds["peer"], tokens, "tokens/s"
    )


def compare_training(work: workload.Workload, options: argparse.Namespace) -> list[str]:
    """Compares ours with each peer; also tells what packing alone gains."""
    contenders = {
        OURS: train_ours(work, options),
        PACKING_ALONE: train_packing_alone(work, options),
        "padded loop": train_padded(work, options),
    }
    if options.trl:
        with train_trl(work, options) as trl:
            contenders["TRL SFTTrainer, packing='bfd'"] = trl
            seconds = workload.run_interleaved(contenders, options.rounds)
    else:
        seconds = workload.run_interleaved(contenders, options.rounds)
    tokens = sum(len(s.ids) for s in work.encode_samples())

    def compare(name: str, ours: str, peer: str) -> str:
        return workload.format_comparison(
            name, seconds[ours], seconds[peer], tokens, "useful tokens/s"
        )

    peers = [name for name in seconds if name not in (OURS, PACKING_ALONE)]
    return [
        *(compare(f"training: {peer}", OURS, peer) for peer in peers),
        compare("  of it: what ours adds to packing", OURS, PACKING_ALONE),
        *(compare(f"  of it: packing alone against {peer}", PACKING_ALONE, peer) for peer in peers),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="a built corpus")
    parser.add_argument("--trl", help="python of an environment with TRL")
    parser.add_argument(
        "--tokenizer",
        help="directory of a tokenizer; default: a byte-level one of --vocabulary tokens, trained"
        " on the titles",
    )
    for name, value in (
        ("samples", 64),
        ("batch", 32),
        ("micro-batch", 8),
        ("pack-tokens", 2048),
        ("hidden", 128),
        ("layers", 2),
        ("vocabulary", 4096),
        ("rounds", 5),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload.init_single_process_group()
    work = workload.Workload.from_corpus(
        options.corpus, options.samples, options.vocabulary, options.tokenizer
    )
    samples = work.encode_samples()
    tokens = sum(len(s.ids) for s in samples)
    supervised = sum(len(s.ids) - s.answer_start for s in samples)
    print(
        f"{len(samples)} samples, {tokens / len(samples):.0f} tokens each,"
        f" {supervised / len(samples):.1f} supervised; vocabulary {len(work.tokenizer):,}"
    )
    print(compare_prompt_building(options), flush=True)
    for line in compare_training(work, options):
        print(line, flush=True)


if __name__ == "__main__":
    main()

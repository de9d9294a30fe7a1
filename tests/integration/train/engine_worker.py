"""One worker of tests/integration/train/test_engine.py, started by torchrun.

    torchrun --nproc-per-node N tests/integration/train/engine_worker.py FOLDER

Trains a tiny model at every ZeRO stage, LoRA and full, and a soft prompt at the last one, and
writes its losses to FOLDER. Two workers also write checkpoints there, from which one worker then
resumes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from cprec.config.sections.model import ModelSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.encode.prompt import SOFT_TOKEN_START
from cprec.encode.tokens import EncodedSample
from cprec.model import adapter
from cprec.model.soft_prompt import find_soft_prompt
from cprec.runs import checkpoint
from cprec.stream.packing import MicroBatchSpec, build_micro_batches
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens
from cprec.train.engine import Engine
from tests.models import llama

Kind = Literal["lora", "full", "partial", "prompt"]
CASES: list[tuple[Kind, int]] = [
    *[(kind, stage) for kind in ("lora", "full") for stage in range(4)],
    ("prompt", 3),
]
STEPS = 4
HALF = 2
"""Steps before the checkpoint."""
BATCH = 7
"""Samples of a global batch."""
END_TOKEN = 0
LR = 1e-2
TEXT_STEP = 99
"""A step that is never trained: its samples are the text whose loss is measured."""


def model(kind: Kind, dropout: float) -> torch.nn.Module:
    settings = ModelSettings(adapter=kind, lora_dropout=dropout, last_layers=1)
    return adapter.attach(llama(128), settings, 0)


def samples(step: int) -> list[EncodedSample]:
    """Returns the samples of a step's global batch, of random tokens."""
    rng = np.random.default_rng(step)
    lengths = rng.integers(8, 16, BATCH).tolist()
    return [
        EncodedSample(rng.integers(1, 128, n).astype(np.int32), n - int(rng.integers(2, 5)), 0)
        for n in lengths
    ]


def worker_batch(step: int, network: Any) -> WorkerBatch:
    """Returns this worker's part of a step's global batch, as the model reads it."""
    rank = dist.get_rank()
    batch = samples(step)
    if find_soft_prompt(network) is not None:
        for sample in batch:
            sample.ids[:3] = range(SOFT_TOKEN_START, SOFT_TOKEN_START + 3)
    indices_by_rank = split_by_tokens([len(s.ids) for s in batch], dist.get_world_size())
    supervised = sum(len(s.ids) - s.answer_start for s in batch)
    return WorkerBatch(
        GlobalBatch(0, BATCH, supervised, 0, 0, {}),
        rank,
        tuple(tuple(len(batch[i].ids) for i in indices) for indices in indices_by_rank),
        np.array(indices_by_rank[rank]),
        tuple(batch[i] for i in indices_by_rank[rank]),
    )


def text_loss(engine: Engine, spec: MicroBatchSpec) -> float:
    """Returns the loss of a batch that is not trained on, in evaluation mode."""
    return engine.total_loss(
        build_micro_batches(worker_batch(TEXT_STEP, engine.model), spec, END_TOKEN)
    )


def train_steps(
    engine: Engine, spec: MicroBatchSpec, first: int, stop: int, measure: bool = False
) -> list[float]:
    """Trains steps first..stop; returns their losses. measure: the text's loss before each step."""
    losses = []
    for step in range(first, stop):
        if measure:
            text_loss(engine, spec)
        batch = worker_batch(step, engine.model)
        micro_batches = build_micro_batches(batch, spec, END_TOKEN)
        supervised = batch.global_batch.supervised_tokens
        losses.append(engine.step(micro_batches, supervised, LR, 10 * step + dist.get_rank()).loss)
    return losses


def loss_sum(network: torch.nn.Module, sample: EncodedSample) -> torch.Tensor:
    """Returns the sum of -log p over the supervised tokens of one sample, by plain PyTorch."""
    ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
    logits = network(input_ids=ids).logits[0, sample.answer_start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, sample.answer_start :], reduction="sum")


def plain_losses() -> list[float]:
    """Returns the losses of the same steps by plain PyTorch, one sample at a time."""
    trained = model("lora", 0.0)
    optimizer = torch.optim.AdamW(
        [p for p in trained.parameters() if p.requires_grad], lr=LR, weight_decay=0.0
    )
    losses = []
    for step in range(STEPS):
        batch = samples(step)
        total = torch.zeros(())
        for sample in batch:
            total = total + loss_sum(trained, sample)
        loss = total / sum(len(s.ids) - s.answer_start for s in batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for p in trained.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_text_loss() -> float:
    """Returns the loss of the text by plain PyTorch, in evaluation mode."""
    network = model("lora", 0.1).eval()
    with torch.no_grad():
        return sum(float(loss_sum(network, sample)) for sample in samples(TEXT_STEP))


def train_and_resume(folder: Path, kind: Kind, stage: int) -> dict[str, object]:
    """Trains without a break and with one, at one ZeRO stage.

    Two workers write the checkpoint at the break; any number of workers resumes it.

    Returns:
        whole: the losses of all steps without a break; resumed: those after the break, where the
        text is measured before every step; bitwise: whether both end with equal weights; text: the
        text's loss before any step; twice: the same at the end, measured twice.
    """
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    # Each stage is packed at one number of workers and padded at the other. Both are compared with
    # plain PyTorch, and with each other.
    settings = TrainSettings(zero_stage=stage, pack=(stage + world_size) % 2 == 0)
    spec = (
        MicroBatchSpec(packed=True, size=30)
        if settings.pack
        else MicroBatchSpec(packed=False, size=2)
    )
    # Dropout only in the one case that is not compared with another number of workers: they draw
    # it differently.
    dropout = 0.1 if world_size == 2 and kind == "lora" and stage == 1 else 0.0
    whole = Engine(model(kind, dropout), settings, "fp32")
    # Measuring a loss must not change training: here before the first step, in the resumed run
    # before every step.
    text = text_loss(whole, spec)
    losses = train_steps(whole, spec, 0, HALF)
    checkpoint_folder = folder / f"{kind}-{stage}"
    state = whole.gather_state()
    if world_size == 2 and rank == 0:
        checkpoint.save_training_state(state, checkpoint_folder)
    dist.barrier()
    losses += train_steps(whole, spec, HALF, STEPS)
    resumed = Engine(model(kind, dropout), settings, "fp32")
    resumed.restore_state(checkpoint.load_training_state(str(checkpoint_folder)))
    resumed_losses = train_steps(resumed, spec, HALF, STEPS, measure=True)
    twice = [text_loss(whole, spec), text_loss(whole, spec)]
    whole_weights, resumed_weights = (engine.gather_state().weights for engine in (whole, resumed))
    for engine in (whole, resumed):
        engine._adam.close()
    return {
        "whole": losses,
        "resumed": resumed_losses,
        "bitwise": all(
            torch.equal(weight, resumed_weights[name]) for name, weight in whole_weights.items()
        ),
        "text": text,
        "twice": twice,
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    results: dict[str, object] = {"plain": plain_losses(), "plain_text": plain_text_loss()}
    for kind, stage in CASES:
        results[f"{kind}-{stage}"] = train_and_resume(folder, kind, stage)
    if dist.get_rank() == 0:
        (folder / f"seen-{dist.get_world_size()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
    # As Ray ends its workers. What so many engines leave of gloo's threads aborts an exit now and
    # then ("terminate called without an active exception").
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

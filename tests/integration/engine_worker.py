"""One worker of tests/integration/test_engine.py, started by torchrun: trains a tiny model at every ZeRO stage and writes what it saw.

torchrun --nproc-per-node N tests/integration/engine_worker.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cprec.config.recipe import ModelSettings, TrainSettings
from cprec.encode.tokens import EncodedSample
from cprec.model import adapter
from cprec.runs import checkpoint
from cprec.stream.packing import MicroBatchSpec, build_micro_batches
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens
from cprec.train.engine import Engine
from tests.models import llama

STEPS, HALF, BATCH, END, RATE = 4, 2, 7, 0, 1e-2


def model(kind: str, dropout: float) -> torch.nn.Module:
    return adapter.attach(llama(128), ModelSettings(adapter=kind, lora_dropout=dropout), 0)  # type: ignore[arg-type]


def samples(step: int) -> list[EncodedSample]:
    rng = np.random.default_rng(step)
    lengths = rng.integers(8, 16, BATCH).tolist()
    return [
        EncodedSample(rng.integers(1, 128, n).astype(np.int32), n - int(rng.integers(2, 5)), 0)
        for n in lengths
    ]


def share(step: int, rank: int, world: int) -> WorkerBatch:
    found = samples(step)
    dealt = split_by_tokens([len(s.ids) for s in found], world)
    batch = GlobalBatch(0, BATCH, sum(len(s.ids) - s.answer_start for s in found), 0, 0, {})
    lengths = tuple(tuple(len(found[i].ids) for i in part) for part in dealt)
    return WorkerBatch(
        batch, rank, lengths, np.array(dealt[rank]), tuple(found[i] for i in dealt[rank])
    )


def text_loss(engine: Engine, cut: MicroBatchSpec) -> float:
    """The loss of a batch that is not trained on, in evaluation mode."""
    return engine.total_loss(
        build_micro_batches(share(99, dist.get_rank(), dist.get_world_size()), cut, END)
    )


def steps(
    engine: Engine, cut: MicroBatchSpec, first: int, last: int, measure: bool = False
) -> list[float]:
    rank, world = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in range(first, last):
        if measure:
            text_loss(engine, cut)
        mine = share(step, rank, world)
        losses.append(
            engine.step(
                build_micro_batches(mine, cut, END),
                mine.global_batch.supervised_tokens,
                RATE,
                10 * step + rank,
            ).loss
        )
    return losses


def loss_sum(network: torch.nn.Module, sample: EncodedSample) -> torch.Tensor:
    """Sum of -log p over the supervised tokens of one sample, by PyTorch alone."""
    ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
    logits = network(input_ids=ids).logits[0, sample.answer_start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, sample.answer_start :], reduction="sum")


def plain() -> list[float]:
    """The same steps by PyTorch alone, each sample for itself."""
    trained = model("lora", 0.0)
    optimizer = torch.optim.AdamW(
        [p for p in trained.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0
    )
    losses = []
    for step in range(STEPS):
        found = samples(step)
        total = torch.zeros(())
        for s in found:
            total = total + loss_sum(trained, s)
        loss = total / sum(len(s.ids) - s.answer_start for s in found)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for p in trained.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_text_loss() -> float:
    """The loss of the same batch by PyTorch alone, in evaluation mode."""
    found = model("lora", 0.1).eval()
    with torch.no_grad():
        return sum(float(loss_sum(found, s)) for s in samples(99))


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    seen: dict[str, object] = {"plain": plain(), "plain_text": plain_text_loss()}
    for kind in ("lora", "full"):
        for stage in range(4):
            # Every stage is packed at one number of workers and padded at the other: both are held against plain PyTorch and against each other.
            settings = TrainSettings(zero_stage=stage, pack=(stage + world) % 2 == 0)
            cut = (
                MicroBatchSpec(packed=True, size=30)
                if settings.pack
                else MicroBatchSpec(packed=False, size=2)
            )
            # Dropout where runs of equal size are compared bit for bit; none where they differ in size.
            dropout = 0.1 if world == 2 and kind == "lora" and stage == 1 else 0.0
            whole = Engine(model(kind, dropout), settings, "fp32")
            # A loss that is measured before any step, and, of the resumed run alone, before every step: it must leave no trace.
            text = text_loss(whole, cut)
            losses = steps(whole, cut, 0, HALF)
            place = folder / f"{kind}-{stage}"
            state = whole.gather_state()
            if world == 2 and rank == 0:
                checkpoint.save_training_state(state, place)
            dist.barrier()
            losses += steps(whole, cut, HALF, STEPS)
            resumed = Engine(model(kind, dropout), settings, "fp32")
            resumed.restore_state(checkpoint.load_training_state(str(place)))
            again = steps(resumed, cut, HALF, STEPS, measure=True)
            twice = [text_loss(whole, cut), text_loss(whole, cut)]
            ends = [engine.gather_state() for engine in (whole, resumed)]
            equal = all(
                torch.equal(ends[0].weights[n], ends[1].weights[n]) for n in ends[0].weights
            )
            seen[f"{kind}-{stage}"] = {
                "whole": losses,
                "resumed": again,
                "bitwise": equal,
                "text": text,
                "twice": twice,
            }
    if rank == 0:
        (folder / f"seen-{world}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

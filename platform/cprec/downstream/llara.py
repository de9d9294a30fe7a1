"""Fine-tuning as LLaRA does it (arXiv 2312.02445), as a plan. Pure.

The plan says which samples are trained next, in which prompt, and at which learning rate
(docs/decisions/008-fine-tuning-is-a-plan.md). It is a plan in cosine mode: the learning rate rises
over W samples and then falls to the end. Its eras are its epochs, each in an order of its own.

The curriculum is counted over the whole run, not by each data-loading process. With T samples in
all epochs, or in the first one (`finetune.curriculum`), the global batch at sample t is hybrid, as
a whole, with probability t / T. The draw depends only on (seed, t), so a resumed run sees the same
batches.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cprec.config.sections.finetuning import Curriculum, FinetuneSettings
from cprec.downstream.hybrid import PromptEncoders
from cprec.schedule.plan import Era, Plan, Portion, global_batches
from cprec.schedule.wsa import WSA, Mode
from cprec.stream.worker_rows import to_worker_rows, worker_batch_from_row
from cprec.train.loop import TrainingStep


def build_plan(
    source: str, version: int, num_rows: int, lr: float, settings: FinetuneSettings, seed: int
) -> Plan:
    """Builds the plan of a fine-tuning.

    Args:
        source: Source of the training samples.
        version: Corpus version of the samples.
        num_rows: Number of training samples.
        lr: Highest learning rate.
        settings: The recipe's section `finetune`.
        seed: Seed of the order of samples and of the curriculum.

    Raises:
        ValueError: There are no samples.
    """
    if not num_rows:
        raise ValueError("no samples to fine-tune on")
    total = num_rows * settings.epochs
    all_rows = (Portion(source, version, 0, num_rows),)
    epochs = tuple(
        Era(epoch * num_rows, (epoch + 1) * num_rows, all_rows, seed)
        for epoch in range(settings.epochs)
    )
    wsa = WSA(
        lr * settings.lr_min_ratio,
        lr,
        round(settings.warmup_fraction * total),
        total,
        total,
        Mode.COSINE,
    )
    return Plan((*epochs, Era(total, total, (), seed)), wsa)


def samples_per_epoch(plan: Plan) -> int:
    """Returns the number of samples of one epoch."""
    return plan.eras[0].stop


def rows_at(plan: Plan, start: int, stop: int) -> NDArray[np.int64]:
    """Returns the rows of the training table at positions start..stop of the plan.

    The positions must be in one epoch. Every epoch is a permutation of all rows, drawn from
    (seed, epoch).
    """
    era = plan.find_era(start)
    num_rows = samples_per_epoch(plan)
    order = np.random.default_rng([era.seed, 0xF17E, start // num_rows]).permutation(num_rows)
    return order[np.arange(start % num_rows, start % num_rows + stop - start)]


def is_hybrid_batch(plan: Plan, start: int, curriculum: Curriculum) -> bool:
    """Tells whether the global batch at a position is hybrid: with probability t / T.

    See LLaRA, Sec. 3.3.

    Args:
        plan: The plan of the fine-tuning.
        start: Position of the batch, t.
        curriculum: Whether T is the samples of all epochs, or of one.
    """
    era = plan.find_era(start)
    total = samples_per_epoch(plan) if curriculum == "epoch" else plan.total_samples
    return bool(np.random.default_rng([era.seed, 0xC0DE, start]).random() < start / total)


def iter_training_steps(
    plan: Plan,
    samples: pa.Table,
    encoders: PromptEncoders,
    batch_size: int,
    curriculum: Curriculum,
    start_position: int,
    rank: int,
    world_size: int,
) -> Iterator[TrainingStep]:
    """Yields the optimizer steps of one worker, from a position to the end of the plan.

    Args:
        plan: The plan of the fine-tuning.
        samples: All training samples.
        encoders: Encoders of samples.
        batch_size: Samples of one optimizer step, over all workers.
        curriculum: Over what batches become hybrid.
        start_position: Position of the first step, in samples.
        rank: Rank of the worker.
        world_size: Number of workers.
    """
    for era in plan.eras:
        for start, stop in global_batches(era.start, era.stop, batch_size):
            if start < start_position:
                continue
            encoder = (
                encoders.hybrid
                if encoders.hybrid and is_hybrid_batch(plan, start, curriculum)
                else encoders.text
            )
            rows = samples.take(pa.array(rows_at(plan, start, stop)))
            columns = (rows[name].to_pylist() for name in ("history", "candidates", "target"))
            encoded = [encoder.encode_sample(*row) for row in zip(*columns, strict=True)]
            sample_ids = rows["sample_id"].to_numpy().view(np.uint64)
            sources = [era.portions[0].source] * len(encoded)
            worker_rows = to_worker_rows(start, stop, encoded, sample_ids, sources, world_size)
            yield TrainingStep(
                worker_batch_from_row(worker_rows[rank]),
                plan.wsa.lr(start),
                plan.wsa.phase(start),
                plan.wsa.stable_end,
                plan.total_samples,
            )

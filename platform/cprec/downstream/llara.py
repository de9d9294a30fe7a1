"""Fine-tuning as LLaRA does it (arXiv 2312.02445; method.md, "Downstream"), as a plan: what is trained next, in which prompt, at which rate. Pure.

A fine-tuning is a plan in cosine mode: the rate rises over W samples and falls to the end. Its eras are its epochs, each in an order of its own. The
curriculum is counted over the whole run, not by each loading process: the global batch at sample s is hybrid, as a whole, with probability s / A.
That is a function of (seed, s), so a resumed run sees the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cprec.config.recipe import FinetuneSettings
from cprec.downstream.hybrid import IndexedPromptEncoder
from cprec.schedule.plan import Era, Plan, Portion, global_batches
from cprec.schedule.wsa import WSA, Mode
from cprec.stream.segments import to_worker_rows, worker_batch_from_row
from cprec.train.loop import TrainingStep


@dataclass(frozen=True)
class PromptEncoders:
    """How a batch becomes tokens. hybrid: None for the text-only variant."""

    text: IndexedPromptEncoder
    hybrid: IndexedPromptEncoder | None

    @property
    def for_evaluation(self) -> IndexedPromptEncoder:
        """Evaluation of a hybrid model is always hybrid."""
        return self.hybrid or self.text


def build_plan(
    source: str, version: int, row_count: int, lr: float, settings: FinetuneSettings, seed: int
) -> Plan:
    """The plan of a fine-tuning on `rows` samples of a source. rate: the highest learning rate.

    Raises ValueError without rows.
    """
    if not row_count:
        raise ValueError("no samples to fine-tune on")
    total = row_count * settings.epochs
    whole = (Portion(source, version, 0, row_count),)
    epochs = tuple(
        Era(epoch * row_count, (epoch + 1) * row_count, whole, seed)
        for epoch in range(settings.epochs)
    )
    rates = WSA(
        lr * settings.lr_min_ratio,
        lr,
        round(settings.warmup_fraction * total),
        total,
        total,
        Mode.COSINE,
    )
    return Plan((*epochs, Era(total, total, (), seed)), rates)


def samples_per_epoch(plan: Plan) -> int:
    """Samples of one epoch."""
    return plan.eras[0].stop


def rows_at(plan: Plan, start: int, stop: int) -> NDArray[np.int64]:
    """Rows of the training table at positions start..stop of one era: a permutation of all rows in every epoch, drawn from (seed, epoch)."""
    era, rows = plan.find_era(start), samples_per_epoch(plan)
    order = np.random.default_rng([era.seed, 0xF17E, start // rows]).permutation(rows)
    return order[np.arange(start % rows, start % rows + stop - start)]


def is_hybrid_batch(plan: Plan, start: int) -> bool:
    """Whether the global batch at a position is hybrid: with probability t / T (LLaRA Sec. 3.3)."""
    era = plan.find_era(start)
    return bool(
        np.random.default_rng([era.seed, 0xC0DE, start]).random() < start / plan.total_samples
    )


def iter_training_steps(
    plan: Plan,
    samples: pa.Table,
    encoders: PromptEncoders,
    batch_size: int,
    start_position: int,
    rank: int,
    world_size: int,
) -> Iterator[TrainingStep]:
    """One worker's shares from a position on, to the end of the plan. table: the training samples; batch: samples of a step."""
    for era in plan.eras:
        for start, stop in global_batches(era.start, era.stop, batch_size):
            if start < start_position:
                continue
            encoder = (
                encoders.hybrid
                if encoders.hybrid and is_hybrid_batch(plan, start)
                else encoders.text
            )
            rows = samples.take(pa.array(rows_at(plan, start, stop)))
            columns = (rows[name].to_pylist() for name in ("history", "candidates", "target"))
            tokens = [encoder.encode_sample(*row) for row in zip(*columns, strict=True)]
            ids = rows["sample_id"].to_numpy().view(np.uint64)
            share = worker_batch_from_row(
                to_worker_rows(
                    start, stop, tokens, ids, [era.portions[0].source] * len(tokens), world_size
                )[rank]
            )
            yield TrainingStep(
                share,
                plan.wsa.lr(start),
                plan.wsa.phase(start),
                plan.wsa.stable_end,
                plan.total_samples,
            )

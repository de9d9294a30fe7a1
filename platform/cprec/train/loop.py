"""The training loop: takes steps from an iterator, and reports each one to an observer.

It knows no Ray, no storage and no schedule, so it runs the same under Ray Train, under torchrun,
and bare in a test.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import PlatformFault
from cprec.schedule.wsa import Phase
from cprec.stream.packing import MicroBatchSpec, build_micro_batches, filled_tokens
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, imbalance
from cprec.train.device import peak_memory_bytes
from cprec.train.engine import Engine, StepOutcome

MAX_IDS = 8
"""Samples that an error names by their ids."""


class DivergenceError(PlatformFault):
    """A loss or perplexity is not finite; most often the learning rate is too high."""


@dataclass(frozen=True)
class TrainingStep:
    """One worker's part of an optimizer step, as the plan stood when the step was issued.

    Attributes:
        worker_batch: The samples that this worker trains.
        lr: Learning rate of the step.
        phase: Phase of the step.
        stable_end: End of the stable phase (samples; S).
        annealing_end: End of the plan (samples; A).
        held_until: When the stable phase was no longer held open, if workers waited for that
            (`time.perf_counter` of this process); 0: they did not.
    """

    worker_batch: WorkerBatch
    lr: float
    phase: Phase
    stable_end: int
    annealing_end: int
    held_until: float = 0.0


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step after it was done.

    Attributes:
        step: Number of the step, from 0.
        batch: The global batch.
        phase: Phase of the schedule.
        lr: Learning rate.
        loss: Mean loss per supervised token (nats).
        grad_norm: Gradient norm before clipping.
        step_s: Duration of the step (seconds).
        data_wait_s: Time the loop waited for data before the step (seconds).
        held_s: Time the loop waited before that, because the stable phase was held open (seconds).
        imbalance: By how much the fullest worker exceeds the mean (fraction of the mean).
        operations: Operations of the step, over all workers.
        peak_memory_bytes: Peak memory of this worker so far.
        planned_memory_bytes: What the estimate gives for the longest passes of this worker so far;
            0 on a CPU, where nothing is planned.
        computed_tokens: Tokens of samples that were computed, over all workers; fewer than those of
            the batch where samples share some.
        filled_tokens: Tokens that were computed beside them to fill rows, over all workers.
        compiled_graphs: Graphs that this worker has compiled so far.
        save: Whether a worker wants a checkpoint after this step.
    """

    step: int
    batch: GlobalBatch
    phase: Phase
    lr: float
    loss: float
    grad_norm: float
    step_s: float
    data_wait_s: float
    held_s: float
    imbalance: float
    operations: int
    peak_memory_bytes: int
    planned_memory_bytes: float
    computed_tokens: int
    filled_tokens: int
    compiled_graphs: int
    save: bool


class Observer(Protocol):
    """Observes the loop on every worker, and may ask it to stop or to save."""

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Takes note of a step.

        It may use the engine's collectives, because every worker is told of the same steps.
        """

    def should_stop(self) -> bool:
        """Returns whether this worker wants to stop after the step that begins now.

        If one worker wants to, all stop after that step.
        """
        return False

    def should_save(self) -> bool:
        """Returns whether this worker wants a checkpoint after the step that begins now.

        If one worker wants it, the record of that step says so to all.
        """
        return False


def train(
    engine: Engine,
    steps: Iterable[TrainingStep],
    observer: Observer,
    micro_batch_spec: MicroBatchSpec,
    pad_token: int,
    seed: int,
    first_step: int = 0,
) -> int:
    """Trains all steps, or until the observer of a worker wants to stop.

    Args:
        engine: The model in training.
        steps: Steps to train.
        observer: What the loop reports to.
        micro_batch_spec: How a worker batch becomes forward passes.
        pad_token: Token that fills rows.
        seed: Seed of dropout.
        first_step: Steps that the run has done before.

    Returns:
        The number of the step that would be next.

    Raises:
        DivergenceError: The loss or the gradient is not finite; names the samples of the step. The
            observer is not told of this step, so no checkpoint holds it.
    """
    number = first_step
    planned_memory_bytes = 0.0
    for step, held_s, data_wait_s in _with_wait_times(steps):
        start = time.perf_counter()
        worker_batch = step.worker_batch
        batch = worker_batch.global_batch
        micro_batches = build_micro_batches(worker_batch, micro_batch_spec, pad_token)
        planned_memory_bytes = max(
            planned_memory_bytes, engine.memory_plan.peak_bytes(micro_batches)
        )
        result = engine.step(
            micro_batches,
            batch.supervised_tokens,
            step.lr,
            dropout_seed(seed, number, worker_batch.rank),
            observer.should_stop(),
            observer.should_save(),
        )
        if not math.isfinite(result.loss) or math.isinf(result.grad_norm):
            raise DivergenceError(
                f"the {_what_diverged(result)} at step {number} "
                f"(samples {batch.start}..{batch.stop}, ids on rank {worker_batch.rank}: "
                f"{_name_ids(worker_batch.sample_ids.tolist())}); "
                "lower schedule.lr_max or look at these samples"
            )
        step_s = time.perf_counter() - start
        computed_tokens = worker_batch.computed_tokens
        record = StepRecord(
            step=number,
            batch=batch,
            phase=step.phase,
            lr=step.lr,
            loss=result.loss,
            grad_norm=result.grad_norm,
            step_s=step_s,
            data_wait_s=data_wait_s,
            held_s=held_s,
            imbalance=imbalance(worker_batch.lengths_by_rank),
            operations=engine.operation_count.step_operations(
                computed_tokens, batch.supervised_tokens
            ),
            peak_memory_bytes=peak_memory_bytes(engine.device),
            planned_memory_bytes=planned_memory_bytes,
            computed_tokens=computed_tokens,
            filled_tokens=filled_tokens(worker_batch.lengths_by_rank, micro_batch_spec),
            compiled_graphs=engine.compiled_graphs,
            save=result.save,
        )
        observer.on_step_end(record, step, engine)
        number += 1
        if result.stop:
            break
    return number


def _name_ids(sample_ids: Sequence[int]) -> str:
    """Names samples, the first few of many."""
    named = ", ".join(f"{sample_id:016x}" for sample_id in sample_ids[:MAX_IDS])
    more = len(sample_ids) - MAX_IDS
    return f"{named} and {more:,} more" if more > 0 else named


def _what_diverged(result: StepOutcome) -> str:
    """Returns which number of a step is not finite."""
    if math.isfinite(result.loss):
        return f"gradient norm is {result.grad_norm}"
    return f"loss is {result.loss}"


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed of one worker's dropout in one step.

    It depends on run, step and worker alone, so a resumed run draws the dropout of one that was
    never interrupted.
    """
    return (seed * 1_000_003 + step) * 8191 + rank


def _with_wait_times(
    steps: Iterable[TrainingStep],
) -> Iterator[tuple[TrainingStep, float, float]]:
    """Yields each step with the times that the loop waited for it: (step, held, for data) [s]."""
    iterator = iter(steps)
    while True:
        start = time.perf_counter()
        step = next(iterator, None)
        if step is None:
            return
        waited = time.perf_counter() - start
        held = min(max(step.held_until - start, 0.0), waited)
        yield step, held, waited - held

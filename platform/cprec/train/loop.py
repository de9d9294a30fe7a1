"""The training loop. It knows no Ray, no storage and no schedule: shares come in with their rate, records go out to an observer.

So it runs the same under Ray Train, under torchrun and bare in a test.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import PlatformFault
from cprec.schedule.wsa import Phase
from cprec.stream.packing import MicroBatchSpec, build_micro_batches
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, imbalance
from cprec.train.device import peak_memory_bytes
from cprec.train.engine import Engine


class DivergenceError(PlatformFault):
    """Training has left the finite numbers: most often the rate is too high."""


@dataclass(frozen=True)
class TrainingStep:
    """A share with what the plan says of it: learning rate and phase of the step, and the ends S and A as they stood when it was issued."""

    worker_batch: WorkerBatch
    lr: float
    phase: Phase
    stable_end: int
    annealing_end: int


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as it was done. step counts from 0; times in seconds.

    imbalance: by how much the fullest worker exceeds the mean (stream.shares); operations: of all workers; memory_bytes: peak of this worker so far;
    computed: tokens of all workers, of those that samples share one; without sharing they are batch.tokens.
    """

    step: int
    batch: GlobalBatch
    phase: Phase
    lr: float
    loss: float
    grad_norm: float
    step_s: float
    data_wait_s: float
    imbalance: float
    operations: int
    peak_memory_bytes: int
    computed_tokens: int


class Observer(Protocol):
    """Told of every step, on every worker."""

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """A step is done. May use the engine's collectives, because every worker is told of the same steps."""

    def should_stop(self) -> bool:
        """Whether this worker wants training to stop after the step that begins now; if one does, all stop after it."""
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
    """Train on everything that the feed holds, or until the observer of a worker wants to stop. Returns the number of the step that would come next.

    cut: how a share becomes forward passes; end: the padding token; seed: of dropout; first_step: steps that the run has done before.
    Raises Diverged for a loss that is not finite, with the step's samples; the step is not reported, so it reaches no checkpoint.
    """
    step = first_step
    for work, waited in _with_wait_times(steps):
        began = time.perf_counter()
        batch = work.worker_batch.global_batch
        parts = build_micro_batches(work.worker_batch, micro_batch_spec, pad_token)
        result = engine.step(
            parts,
            batch.supervised_tokens,
            work.lr,
            dropout_seed(seed, step, work.worker_batch.rank),
            observer.should_stop(),
        )
        if not math.isfinite(result.loss):
            raise DivergenceError(
                f"the loss is {result.loss} at step {step} (samples {batch.start}..{batch.stop}, ids on rank {work.worker_batch.rank}: "
                f"{[f'{i:016x}' for i in work.worker_batch.sample_ids.tolist()]}); lower schedule.lr_max or look at these samples"
            )
        seconds = time.perf_counter() - began
        computed = work.worker_batch.computed_tokens
        seen = (
            imbalance(work.worker_batch.lengths_by_rank),
            engine.operation_count.step_operations(computed, batch.supervised_tokens),
            peak_memory_bytes(engine.device),
            computed,
        )
        observer.on_step_end(
            StepRecord(
                step,
                batch,
                work.phase,
                work.lr,
                result.loss,
                result.grad_norm,
                seconds,
                waited,
                *seen,
            ),
            work,
            engine,
        )
        step += 1
        if result.stop:
            break
    return step


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A seed for every (run, step, worker), so that a resumed run draws the dropout of the uninterrupted one."""
    return (seed * 1_000_003 + step) * 8191 + rank


def _with_wait_times(steps: Iterable[TrainingStep]) -> Iterator[tuple[TrainingStep, float]]:
    """Each item with the seconds that the loop waited for it."""
    iterator = iter(steps)
    while True:
        began = time.perf_counter()
        work = next(iterator, None)
        if work is None:
            return
        yield work, time.perf_counter() - began

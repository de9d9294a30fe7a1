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
from cprec.stream.packing import Cut, micro_batches
from cprec.stream.worker_batches import GlobalBatch, Share, imbalance
from cprec.train.device import memory_bytes
from cprec.train.engine import Engine


class Diverged(PlatformFault):
    """Training has left the finite numbers: most often the rate is too high."""


@dataclass(frozen=True)
class Work:
    """A share with what the plan says of it: learning rate and phase of the step, and the ends S and A as they stood when it was issued."""

    share: Share
    rate: float
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
    rate: float
    loss: float
    grad_norm: float
    step_s: float
    data_wait_s: float
    imbalance: float
    operations: int
    memory_bytes: int
    computed: int


class Observer(Protocol):
    """Told of every step, on every worker."""

    def stepped(self, record: StepRecord, work: Work, engine: Engine) -> None:
        """A step is done. May use the engine's collectives, because every worker is told of the same steps."""

    def stopping(self) -> bool:
        """Whether this worker wants training to stop after the step that begins now; if one does, all stop after it."""
        return False


def train(
    engine: Engine,
    feed: Iterable[Work],
    observer: Observer,
    cut: Cut,
    end: int,
    seed: int,
    first_step: int = 0,
) -> int:
    """Train on everything that the feed holds, or until the observer of a worker wants to stop. Returns the number of the step that would come next.

    cut: how a share becomes forward passes; end: the padding token; seed: of dropout; first_step: steps that the run has done before.
    Raises Diverged for a loss that is not finite, with the step's samples; the step is not reported, so it reaches no checkpoint.
    """
    step = first_step
    for work, waited in _timed(feed):
        began = time.perf_counter()
        batch = work.share.batch
        parts = micro_batches(work.share, cut, end)
        result = engine.step(
            parts,
            batch.supervised,
            work.rate,
            dropout_seed(seed, step, work.share.rank),
            observer.stopping(),
        )
        if not math.isfinite(result.loss):
            raise Diverged(
                f"the loss is {result.loss} at step {step} (samples {batch.start}..{batch.stop}, ids on rank {work.share.rank}: "
                f"{[f'{i:016x}' for i in work.share.ids.tolist()]}); lower schedule.lr_max or look at these samples"
            )
        seconds = time.perf_counter() - began
        computed = work.share.computed
        seen = (
            imbalance(work.share.lengths),
            engine.work.operations(computed, batch.supervised),
            memory_bytes(engine.device),
            computed,
        )
        observer.stepped(
            StepRecord(
                step,
                batch,
                work.phase,
                work.rate,
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


def _timed(feed: Iterable[Work]) -> Iterator[tuple[Work, float]]:
    """Each item with the seconds that the loop waited for it."""
    iterator = iter(feed)
    while True:
        began = time.perf_counter()
        work = next(iterator, None)
        if work is None:
            return
        yield work, time.perf_counter() - began

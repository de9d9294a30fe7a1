"""A worker's training steps: segment after segment, as the controller issues them.

The next segment is started while the present one is trained.
"""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from cprec.schedule.controller import Segment, Wait
from cprec.stream.segments import read_worker_batches
from cprec.stream.worker_batches import WorkerBatch
from cprec.train.loop import TrainingStep

PREFETCH_BATCHES = 4
"""Worker batches that are read ahead of the loop."""

RETRY_S = 1.0
"""Seconds between two questions to the controller while the run waits for new samples."""


def training_steps(
    controller: Any, attempt: int, position: int, rank: int
) -> Iterator[TrainingStep]:
    """Yields one worker's training steps from a position to the end of the plan.

    In the middle of a segment the next one is requested. That is early enough to hide its start,
    and late enough that at most one segment is ahead when the plan changes.

    Args:
        controller: Handle of the controller.
        attempt: Start of the worker group that the worker belongs to.
        position: First position, which must be the start of a global batch.
        rank: Rank of the worker.
    """
    current = _SegmentPrefetcher(controller, attempt, position, rank)
    while (segment := current.take_segment()) is not None:
        next_segment = None
        middle = len(list(segment.global_batches())) // 2
        for index, worker_batch in enumerate(current):
            if index == middle:
                next_segment = _SegmentPrefetcher(controller, attempt, segment.stop, rank)
            samples = worker_batch.global_batch.start
            yield TrainingStep(
                worker_batch,
                lr=segment.wsa.lr(samples),
                phase=segment.wsa.phase(samples),
                stable_end=segment.wsa.stable_end,
                annealing_end=segment.wsa.annealing_end,
                held_until=current.held_until,
            )
        if next_segment is None:
            raise RuntimeError("the controller issued a segment without batches")
        current = next_segment


class _SegmentPrefetcher:
    """One segment, which a thread requests and reads into a short queue.

    An error in the thread is raised where its result is taken.

    Attributes:
        held_until: When the controller no longer answered `Wait` (`time.perf_counter`); 0: it never
            did.
    """

    def __init__(self, controller: Any, attempt: int, position: int, rank: int) -> None:
        """Starts the thread; `training_steps` explains the arguments."""
        self.held_until = 0.0
        self._arguments = (controller, attempt, position, rank)
        self._items: queue.Queue[Segment | WorkerBatch | Exception | None] = queue.Queue(
            PREFETCH_BATCHES
        )
        threading.Thread(target=self._read, daemon=True).start()

    def take_segment(self) -> Segment | None:
        """Returns the segment, or None at the end of the plan. Called once, before iterating."""
        item = self._next_item()
        return item if isinstance(item, Segment) else None

    def __iter__(self) -> Iterator[WorkerBatch]:
        """Yields the worker batches of the segment."""
        while isinstance(item := self._next_item(), WorkerBatch):
            yield item

    def _next_item(self) -> Segment | WorkerBatch | None:
        """Returns the next item of the queue; None ends it."""
        item = self._items.get()
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self) -> None:
        """Puts the segment, its worker batches and None into the queue, or the error on the way."""
        controller, attempt, position, rank = self._arguments
        try:
            while isinstance(
                assigned := ray.get(controller.issue_segment.remote(attempt, position, rank)), Wait
            ):
                time.sleep(RETRY_S)
                self.held_until = time.perf_counter()
            if assigned is not None:
                self._items.put(assigned.segment)
                for batch in read_worker_batches(assigned.iterator, assigned.segment, rank):
                    self._items.put(batch)
            self._items.put(None)
        except Exception as error:  # whatever it is, the loop's thread raises it
            self._items.put(error)

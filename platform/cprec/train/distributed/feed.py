"""A worker's stream of work: segment after segment from the controller, the next one started while the present one is trained."""

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
"""Shares that are read ahead of the loop."""

RETRY_S = 1.0
"""Seconds between two questions while the stable phase waits for new samples."""


def training_steps(
    controller: Any, attempt: int, position: int, rank: int
) -> Iterator[TrainingStep]:
    """This worker's shares from a position on, each with its rate and phase, to the end of the plan.

    The next segment is asked for in the middle of the present one: early enough to hide its start, late enough that at most one segment is ahead
    when the plan changes.
    """
    current = _SegmentPrefetcher(controller, attempt, position, rank)
    while (segment := current.take_segment()) is not None:
        following = None
        middle = len(list(segment.global_batches())) // 2
        for index, share in enumerate(current):
            if index == middle:
                following = _SegmentPrefetcher(controller, attempt, segment.stop, rank)
            seen = share.global_batch.start
            yield TrainingStep(
                share,
                segment.wsa.lr(seen),
                segment.wsa.phase(seen),
                segment.wsa.stable_end,
                segment.wsa.annealing_end,
            )
        if following is None:
            raise RuntimeError("a segment without batches was handed out")
        current = following


class _SegmentPrefetcher:
    """One segment, read by a thread into a short queue. What goes wrong in the thread is raised where its result is taken."""

    def __init__(self, controller: Any, attempt: int, position: int, rank: int) -> None:
        self._arguments = (controller, attempt, position, rank)
        self._items: queue.Queue[Segment | WorkerBatch | Exception | None] = queue.Queue(
            PREFETCH_BATCHES
        )
        threading.Thread(target=self._read, daemon=True).start()

    def take_segment(self) -> Segment | None:
        """The segment; None at the end of the plan. Called once, before iterating."""
        item = self._next_item()
        return item if isinstance(item, Segment) else None

    def __iter__(self) -> Iterator[WorkerBatch]:
        while isinstance(item := self._next_item(), WorkerBatch):
            yield item

    def _next_item(self) -> Segment | WorkerBatch | None:
        item = self._items.get()
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self) -> None:
        controller, attempt, position, rank = self._arguments
        try:
            while isinstance(
                handed := ray.get(controller.issue_segment.remote(attempt, position, rank)), Wait
            ):
                time.sleep(RETRY_S)
            if handed is not None:
                self._items.put(handed.segment)
                for share in read_worker_batches(handed.iterator, handed.segment, rank):
                    self._items.put(share)
            self._items.put(None)
        except Exception as error:  # whatever it is, it belongs to the loop's thread
            self._items.put(error)

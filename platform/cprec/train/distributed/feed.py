"""A worker's stream of work: segment after segment from the controller, the next one started while the present one is trained."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from cprec.schedule.controller import Segment, Wait
from cprec.stream.segments import shares
from cprec.stream.worker_batches import Share
from cprec.train.loop import Work

DEPTH = 4
"""Shares that are read ahead of the loop."""

WAIT_S = 1.0
"""Seconds between two questions while the stable phase waits for new samples."""


def feed(controller: Any, attempt: int, position: int, rank: int) -> Iterator[Work]:
    """This worker's shares from a position on, each with its rate and phase, to the end of the plan.

    The next segment is asked for in the middle of the present one: early enough to hide its start, late enough that at most one segment is ahead
    when the plan changes.
    """
    current = _Ahead(controller, attempt, position, rank)
    while (segment := current.segment()) is not None:
        following = None
        middle = len(list(segment.batches())) // 2
        for index, share in enumerate(current):
            if index == middle:
                following = _Ahead(controller, attempt, segment.stop, rank)
            seen = share.batch.start
            yield Work(
                share,
                segment.wsa.rate(seen),
                segment.wsa.phase(seen),
                segment.wsa.stable_end,
                segment.wsa.annealing_end,
            )
        if following is None:
            raise RuntimeError("a segment without batches was handed out")
        current = following


class _Ahead:
    """One segment, read by a thread into a short queue. What goes wrong in the thread is raised where its result is taken."""

    def __init__(self, controller: Any, attempt: int, position: int, rank: int) -> None:
        self._arguments = (controller, attempt, position, rank)
        self._items: queue.Queue[Segment | Share | Exception | None] = queue.Queue(DEPTH)
        threading.Thread(target=self._read, daemon=True).start()

    def segment(self) -> Segment | None:
        """The segment; None at the end of the plan. Called once, before iterating."""
        item = self._take()
        return item if isinstance(item, Segment) else None

    def __iter__(self) -> Iterator[Share]:
        while isinstance(item := self._take(), Share):
            yield item

    def _take(self) -> Segment | Share | None:
        item = self._items.get()
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self) -> None:
        controller, attempt, position, rank = self._arguments
        try:
            while isinstance(
                handed := ray.get(controller.segment.remote(attempt, position, rank)), Wait
            ):
                time.sleep(WAIT_S)
            if handed is not None:
                self._items.put(handed.segment)
                for share in shares(handed.iterator, handed.segment, rank):
                    self._items.put(share)
            self._items.put(None)
        except Exception as error:  # whatever it is, it belongs to the loop's thread
            self._items.put(error)

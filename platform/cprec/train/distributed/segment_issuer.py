"""Issues segments to workers: one Ray Data execution per segment, one iterator per worker."""

from dataclasses import dataclass

from ray.data import DataIterator

from cluster.errors import PlatformFault
from cprec.schedule.controller import Segment, Wait
from cprec.stream import segments
from cprec.train.distributed.controller_state import ControllerState
from cprec.train.distributed.corpus_follower import CorpusFollower


@dataclass(frozen=True)
class AssignedSegment:
    """A segment and one worker's iterator over its batches."""

    segment: Segment
    iterator: DataIterator


class SegmentIssuer:
    """Starts segments and keeps the iterators of those that are not trained yet."""

    def __init__(self, state: ControllerState, corpus: CorpusFollower) -> None:
        self._state, self._corpus = state, corpus
        self._started: dict[int, tuple[Segment, list[DataIterator]]] = {}
        self._stopping = False

    def reset(self) -> None:
        """Forgets all executions: a new worker group starts its own."""
        self._started = {}

    def stop(self) -> None:
        """Starts no further segment."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether the run was told to stop."""
        return self._stopping

    def issue(self, attempt: int, position: int, rank: int) -> AssignedSegment | Wait | None:
        """Returns the segment at a position with one worker's iterator.

        The first worker that asks starts the execution. Before a segment is issued for the first
        time, the corpus is checked, so that what it gained joins here.

        Args:
            attempt: Start of the worker group that the worker belongs to.
            position: Start of the segment.
            rank: Rank of the worker.

        Returns:
            `Wait` while the stable phase is held open and dry. None at the end of the plan, and
            for a segment that nobody had asked for when the run was told to stop.

        Raises:
            PlatformFault: The worker belongs to a group that is not training any more.
        """
        state, group = self._state, self._state.group
        if group is None or attempt != group.attempt:
            training = "no worker group" if group is None else f"attempt {group.attempt}"
            raise PlatformFault(
                f"a worker of attempt {attempt} asks for a segment, but {training} is training"
            )
        if position not in self._started:
            if self._stopping:
                return None
            if position >= state.controller.issued_samples:
                self._corpus.check()
            segment = state.controller.issue_segment(position)
            state.workers_wait = isinstance(segment, Wait)
            if not isinstance(segment, Segment):
                return segment
            self._start(segment, group.world_size)
        segment, iterators = self._started[position]
        return AssignedSegment(segment, iterators[rank])

    def _start(self, segment: Segment, world_size: int) -> None:
        trained = self._state.controller.samples
        iterators = segments.stream_segment(
            segment, self._corpus.streams, self._corpus.row_encoder, world_size
        )
        untrained = {
            start: entry for start, entry in self._started.items() if entry[0].stop > trained
        }
        self._started = {**untrained, segment.start: (segment, iterators)}

"""Notices that nodes with workers are taken away soon: spot machines, or a cluster that shrinks.

Ray Train's watcher asks Ray every few seconds which nodes are drained, and tells each worker. When
the deadline has passed, or a worker died of it, Ray Train starts the group again on other nodes,
and does not count that among the failures of `train.max_failures`. A worker that returned earlier
would end the run as finished, so workers train on until then. What they train after their last
checkpoint is trained again, so they save twice: when the notice comes, and shortly before its
deadline.
"""

from dataclasses import dataclass

# The public `ray.train.get_preemption_info` is a collective through an actor, in every step.
from ray.train.v2._internal.execution.context import get_train_context

SLACK_S = 1.0
"""Seconds that the last checkpoint is earlier than it need be."""


@dataclass(frozen=True)
class PreemptionNotice:
    """A notice that nodes with workers are taken away soon.

    Attributes:
        ranks: Ranks of the workers on nodes that are taken away.
        deadline: When (Unix seconds); None: it was not said.
    """

    ranks: list[int]
    deadline: float | None


class PreemptionNotices:
    """The notices that this worker was given."""

    def __init__(self) -> None:
        """Begins without a notice."""
        self._taken: PreemptionNotice | None = None
        self._asked_at: float | None = None
        self._longest_s = 0.0

    def take(self) -> PreemptionNotice | None:
        """Returns the notice that came since the last call; None if none came."""
        info = get_train_context().preemption_context.preemption_info
        if info is None:
            return None
        deadline = None if info.deadline_ms is None else info.deadline_ms / 1000
        notice = PreemptionNotice(info.preempted_ranks, deadline)
        if notice == self._taken:
            return None
        self._taken, self._asked_at, self._longest_s = notice, None, 0.0
        return notice

    def is_last_call(self, now: float) -> bool:
        """Returns whether this step must save, because the deadline may pass before the next one.

        It is asked once in every step. The first step after a notice saves, so the longest time
        between two questions since then is that of a step with a save.

        Args:
            now: The time (Unix seconds).
        """
        if self._taken is None or self._taken.deadline is None:
            return False
        if self._asked_at is not None:
            self._longest_s = max(self._longest_s, now - self._asked_at)
        self._asked_at = now
        left = self._taken.deadline - now
        return self._longest_s > 0 and 0 < left <= 2 * self._longest_s + SLACK_S

"""Notices that nodes with workers are taken away soon: spot machines, or a cluster that shrinks.

Ray Train's watcher asks Ray every few seconds which nodes are drained, and tells each worker. When
the deadline has passed, or a worker died of it, Ray Train starts the group again on other nodes,
and does not count that among the failures of `train.max_failures`. A worker that returned earlier
would end the run as finished, so workers train on until then.
"""

from dataclasses import dataclass

# The public `ray.train.get_preemption_info` is a collective through an actor, in every step.
from ray.train.v2._internal.execution.context import get_train_context


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

    def take(self) -> PreemptionNotice | None:
        """Returns the notice that came since the last call; None if none came."""
        info = get_train_context().preemption_context.preemption_info
        if info is None:
            return None
        deadline = None if info.deadline_ms is None else info.deadline_ms / 1000
        notice = PreemptionNotice(info.preempted_ranks, deadline)
        if notice == self._taken:
            return None
        self._taken = notice
        return notice

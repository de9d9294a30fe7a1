"""How many workers train where fewer than `workers` are enough (`train.min_workers`).

Ray Train counts what there is room for whenever it starts a group, and now and then while one
trains. This policy adds to that: Ray Data keeps its CPUs, and a group grows after a checkpoint.
"""

from contextlib import suppress
from typing import Any

import ray
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from cprec.config.sections.pretraining import TrainSettings

ANSWER_S = 10.0
"""Seconds that Ray Train's controller waits for an answer of ours; then it asks again later."""


class ResizeAfterCheckpoint(ElasticScalingPolicy):
    """Ray Train's elastic policy, for a run whose controller is asked for a checkpoint first."""

    def __init__(self, scaling: Any, run_controller: Any, train: TrainSettings) -> None:
        """Begins without a wish to resize.

        Args:
            scaling: Ray Train's `ScalingConfig`: fewest and most workers.
            run_controller: Handle of the run's `ControllerActor`.
            train: CPUs of each worker, and those of the cluster that are left to Ray Data.
        """
        super().__init__(scaling)
        self._run_controller = run_controller
        self._cpus_per_worker, self._data_cpus = train.cpus_per_worker, train.stream_cpus
        self._resize: ResizeDecision | None = None
        self._saved_before = 0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Returns the size of a group that is to be started, or that there is no room yet."""
        self._resize = None
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Returns a new size of the group that trains, once a checkpoint is there.

        A group that is too large does not wait for one: it may have been started while a node was
        dying, and have taken the CPUs of Ray Data, without which it never gets to one.
        """
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if (
            isinstance(decision, ResizeDecision)
            and decision.num_workers < worker_group_state.num_workers
        ):
            self._resize = None
            return decision
        with suppress(ray.exceptions.RayError):  # it is starting again: try later
            if isinstance(decision, ResizeDecision):
                if self._resize is None:
                    self._saved_before = self._ask("request_checkpoint")
                self._resize = decision
            if self._resize is not None and self._ask("saved_checkpoints") > self._saved_before:
                decision, self._resize = self._resize, None
                return decision
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # What is reserved is for the workers alone, and may be all there is.
        cpus = ray.cluster_resources().get("CPU", 0.0)
        room = (cpus - self._data_cpus) // self._cpus_per_worker
        return max(0, min(super()._count_possible_workers(reserved_resources), int(room)))

    def _ask(self, method: str) -> int:
        return int(ray.get(getattr(self._run_controller, method).remote(), timeout=ANSWER_S))

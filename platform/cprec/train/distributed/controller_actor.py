"""The controller of a run as a Ray actor: what workers, the driver and other processes call.

Its parts, by who calls: `SegmentIssuer` serves the workers, `RequestServer` serves other processes,
and `CorpusFollower` follows the corpus. `ControllerState` holds what they decide on, and writes it.
"""

import time
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.storage_errors import is_storage_error
from cprec.runs.control.control_channel import ControlChannel
from cprec.runs.control.lease import Lease, LeaseLostError
from cprec.runs.events import (
    CheckpointIgnored,
    CheckpointSaved,
    Failed,
    PerplexityMeasured,
    PreemptionNoticed,
    Resumed,
    SamplesPadded,
    Stopped,
    StorageFailed,
    WorkersFailed,
)
from cprec.runs.records import TraceRow
from cprec.schedule.controller import Wait
from cprec.schedule.plan import Plan
from cprec.stream import segments
from cprec.train.distributed.controller_state import (
    ControllerSettings,
    ControllerState,
    RunNews,
    StepReply,
    WorkerGroup,
)
from cprec.train.distributed.corpus_follower import CorpusFollower
from cprec.train.distributed.failures import raise_portable_errors
from cprec.train.distributed.request_server import RequestServer
from cprec.train.distributed.segment_issuer import AssignedSegment, SegmentIssuer

MAX_QUOTED = 20
"""Errors of workers that an event quotes."""

STORAGE_RETRY_S = 5.0
"""Pause before periodic work is tried again that storage did not allow (seconds)."""

END_WAIT_S = 30.0
"""Time for which the end of a session waits for storage (seconds)."""


@raise_portable_errors
class ControllerActor:
    """One run's controller.

    Its answers depend on the plan alone, so a worker group that was started again gets the same.
    """

    def __init__(self, settings: ControllerSettings, lease: Lease) -> None:
        segments.configure_ray_data()
        self._state = ControllerState(settings, lease)
        self._corpus = CorpusFollower(self._state)
        self._segments = SegmentIssuer(self._state, self._corpus)
        self._control_channel = ControlChannel(lease)
        self._requests = RequestServer(self._state, self._corpus, self._control_channel, self.stop)
        self._failure: Exception | None = None
        # A controller that dies after it was told to stop is started again by Ray.
        self._stop_requested = any(
            isinstance(event, Stopped) and event.lease == lease.number
            for event in self._state.events
        )
        if self._stop_requested:
            self._segments.stop()
        self._notices: list[str] = []
        self._checkpoint_requests = 0
        self._faults: dict[int, str] = {}
        self._storage_failed, self._next_try = False, 0.0

    # -- called by workers

    def plan(self) -> Plan:
        """Returns the plan as it stands."""
        return self._state.controller.plan

    def begin_attempt(self, group: WorkerGroup, ignored: list[str]) -> None:
        """Notes that a worker group starts at a checkpoint, or at 0.

        Args:
            group: The group.
            ignored: What is wrong with each newer checkpoint that was passed over.
        """
        self._record_faults()
        self._state.restart(group)
        self._segments.reset()
        self._checkpoint_requests = 0
        for problem in ignored:
            self._state.record(CheckpointIgnored(samples=group.samples, because=problem))
        if group.checkpoint_uri is not None:
            self._state.record(
                Resumed(
                    samples=group.samples,
                    checkpoint=group.checkpoint_uri,
                    attempt=group.attempt,
                    workers=group.world_size,
                )
            )
        self.heartbeat(force=True)

    def issue_segment(
        self, attempt: int, position: int, rank: int
    ) -> AssignedSegment | Wait | None:
        """Returns the segment at a position for one worker; see `SegmentIssuer.issue`."""
        try:
            assigned = self._segments.issue(attempt, position, rank)
        except Exception as error:
            if not is_storage_error(error):
                raise
            self._wait_for_storage(error)
            return Wait()
        if not isinstance(assigned, AssignedSegment):
            self.heartbeat()
        return assigned

    def record_step(self, attempt: int, row: TraceRow) -> StepReply:
        """Records an optimizer step of an attempt; returns what its workers should do."""
        self._state.require_group(attempt)
        self._state.add_step(row)
        return StepReply(self._segments.stopping, self._checkpoint_requests)

    def record_perplexity(self, attempt: int, samples: int, perplexity: float) -> None:
        """Records the perplexity of the plain text after a number of samples."""
        self._state.require_group(attempt)
        self._state.record(PerplexityMeasured(samples=samples, perplexity=perplexity))

    def record_preemption(self, attempt: int, ranks: list[int], deadline: float | None) -> None:
        """Records that nodes with workers are taken away soon, and when (Unix seconds)."""
        self._state.require_group(attempt)
        samples = self._state.controller.samples
        self._state.record(PreemptionNoticed(samples=samples, ranks=ranks, deadline=deadline))

    def record_padding(self, reason: str) -> None:
        """Records that samples are padded although the recipe packs them, once for each group."""
        samples = self._state.controller.samples
        self._state.record(SamplesPadded(samples=samples, because=reason))

    def record_notices(self, notices: list[str]) -> None:
        """Takes note of how the workers train, in the words of the engine."""
        self._notices = notices

    def prepare_checkpoint(self, attempt: int) -> Plan:
        """Makes the trace durable before a checkpoint is completed.

        A run that resumes at the checkpoint never traces these steps again.

        Returns:
            The plan as it stands, for the checkpoint's ledger.
        """
        self._state.require_group(attempt)
        self._state.flush()
        return self._state.controller.plan

    def record_checkpoint(self, attempt: int, samples: int, uri: str) -> None:
        """Records that a checkpoint is complete."""
        self._state.require_group(attempt)
        self._state.record(CheckpointSaved(samples=samples, checkpoint=uri))

    def record_fault(self, attempt: int, rank: int, problem: str) -> None:
        """Takes note of the error that ends a worker; the next attempt makes an event of it."""
        if self._state.group is not None and self._state.group.attempt == attempt:
            self._faults[rank] = problem

    def record_failure(self, error: Exception) -> None:
        """Ends the run with an error that a restart would meet again; the first one counts."""
        if self._failure is None:
            self._failure = error
            self._segments.stop()
            samples = self._state.controller.samples
            with suppress(LeaseLostError):  # then the records are another driver's
                self._state.record(Failed(samples=samples, because=str(error)))

    # -- called by Ray Train's controller

    def request_checkpoint(self) -> int:
        """Lets the workers save soon; returns the number of checkpoints that were saved before."""
        self._checkpoint_requests += 1
        return self.saved_checkpoints()

    def saved_checkpoints(self) -> int:
        """Returns how many checkpoints the run has saved so far."""
        return sum(isinstance(event, CheckpointSaved) for event in self._state.events)

    # -- called by the driver

    def news(self, first_row: int, first_event: int) -> RunNews:
        """Returns what is new since the last call.

        Each call also runs the controller's periodic work.

        Args:
            first_row: Index of the first trace row to return.
            first_event: Index of the first event to return.
        """
        self.heartbeat()
        state = self._state
        return RunNews(
            state.trace_rows[first_row:],
            state.events[first_event:],
            len(state.trace_rows),
            len(state.events),
            state.describe_wait(),
            state.controller.plan.total_samples,
        )

    def notices(self) -> list[str]:
        """Returns how the workers train; empty until they have said it."""
        return self._notices

    def stop(self, by: str | None = None) -> None:
        """Lets the workers finish their step, save a checkpoint and end; `by` is who asked."""
        if self._stop_requested:
            return
        self._stop_requested = True
        self._segments.stop()
        self._state.record(Stopped(samples=self._state.controller.samples, by=by))

    def stop_requested(self) -> bool:
        """Returns whether `stop` was called, by the driver or for a request."""
        return self._stop_requested

    def failure(self) -> Exception | None:
        """Returns the first error given to `record_failure`; None if there was none."""
        return self._failure

    def end_run(self) -> None:
        """Ends the session: the trace is durable, and nobody answers requests any more."""
        deadline = time.monotonic() + END_WAIT_S
        self._record_faults()
        while True:
            try:
                self._state.flush()
                self._requests.serve()
                self._control_channel.publish(self._state.status("ended"))
                return
            except Exception as error:
                if not is_storage_error(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(1)

    # -- periodic work

    def heartbeat(self, force: bool = False) -> None:
        """Checks the corpus, answers requests and writes the status, every few seconds at most.

        Args:
            force: Does so at once, however little time has passed.
        """
        is_due = self._control_channel.is_due() and time.monotonic() >= self._next_try
        if not (force or is_due) or self._state.group is None:
            return
        try:
            self._state.flush()
            if self._corpus.is_due():
                self._corpus.check()
            self._requests.serve()
            status = self._state.status("waiting" if self._state.is_idle else "training")
            self._control_channel.publish(status)
            self._storage_failed = False
        except Exception as error:
            if not is_storage_error(error):
                raise
            self._wait_for_storage(error)

    def _record_faults(self) -> None:
        """Records what the workers said that ended, and names those that said nothing."""
        faults, group = self._faults, self._state.group
        self._faults = {}
        if not faults or group is None:
            return
        silent = [rank for rank in range(group.world_size) if rank not in faults]
        said = [f"rank {rank}: {problem}" for rank, problem in sorted(faults.items())]
        self._state.record(
            WorkersFailed(
                samples=self._state.controller.samples,
                attempt=group.attempt,
                because="; ".join(said[:MAX_QUOTED]),
                silent=silent,
            )
        )

    def _wait_for_storage(self, error: Exception) -> None:
        """Puts the periodic work off: storage is away, and training goes on meanwhile."""
        self._next_try = time.monotonic() + STORAGE_RETRY_S
        if not self._storage_failed:
            self._storage_failed = True
            samples = self._state.controller.samples
            self._state.record(StorageFailed(samples=samples, because=str(error)))


def start_controller(settings: ControllerSettings, lease: Lease) -> Any:
    """Starts a run's controller and returns its handle.

    The actor ends with the driver; if it dies before, Ray starts it again. It is on the driver's
    node, so that a node of workers that is lost takes no controller with it. Where Ray may choose
    another node, it sometimes does, although this one has room.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1)(ControllerActor)
    return actor.options(scheduling_strategy=here).remote(_Pickled(settings), lease)


class _Pickled:
    """A value that an actor is given, with the references in it out of Ray's sight.

    Ray prints an error where an actor that it may start again is given references, which might be
    gone by then. The driver keeps these, and the actor ends with the driver.
    """

    def __init__(self, value: object) -> None:
        self._content = ray.cloudpickle.dumps(value)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return ray.cloudpickle.loads, (self._content,)

"""The controller, a pure state machine: the only owner of what is trained next. `cprec.train.distributed.controller_actor` is its shell in a Ray cluster.

    WARMUP -> STABLE -> ANNEALING -> DONE          a domain may join until the first annealing segment is handed out

Workers ask for the segment at a position; the answer depends on the plan and the position alone, so a restart is told the same again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cprec.schedule.plan import Era, Plan, Portion, global_batches
from cprec.schedule.planning import NO_REPLAY, Replay, extend_plan, start_annealing
from cprec.schedule.wsa import WSA, Phase


@dataclass(frozen=True)
class Segment:
    """A contiguous piece of the plan inside one era: what is streamed as one execution, in global batches of `batch` samples."""

    start: int
    stop: int
    era: Era
    wsa: WSA
    global_batch_size: int

    def global_batches(self) -> Iterator[tuple[int, int]]:
        """(first, stop) position of each global batch; the last of an era may be shorter."""
        return global_batches(self.start, self.stop, self.global_batch_size)


@dataclass(frozen=True)
class Wait:
    """The stable phase has run dry and is held open: ask again later."""


@dataclass(frozen=True)
class PhaseChange:
    """One change of phase, and why."""

    before: Phase
    after: Phase
    samples: int
    reason: str

    def __str__(self) -> str:
        return f"{self.before.upper()} -> {self.after.upper()} because {self.reason}"


class Controller:
    """Hands out segments of a plan, follows the phase of what was trained, and changes the plan from the first position not yet handed out.

    hold: whether the stable phase stays open when it runs dry. closed: whether annealing was called, so that nothing joins any more.
    """

    def __init__(
        self,
        plan: Plan,
        global_batch_size: int,
        segment_samples: int,
        samples: int = 0,
        hold: bool = False,
        closed: bool = False,
    ) -> None:
        self.plan = plan
        self.global_batch_size = global_batch_size
        self.segment_samples = max(segment_samples // global_batch_size, 1) * global_batch_size
        self.hold, self.closed = hold, closed
        self.samples = self.issued_samples = samples
        self.phase = self._phase_at(samples)

    @property
    def is_open(self) -> bool:
        """Whether samples can still join: annealing was neither called nor entered, and none of its segments is handed out."""
        return (
            not self.closed
            and self.issued_samples <= self.plan.wsa.stable_end
            and self.phase in (Phase.WARMUP, Phase.STABLE)
        )

    def issue_segment(self, position: int) -> Segment | Wait | None:
        """The segment that starts at a position (the start of a global batch); Wait while held open and dry; None at the end of the plan."""
        if position == self.plan.wsa.stable_end and self.hold and self.is_open:
            return Wait()
        if position >= self.plan.total_samples:
            return None
        era = self.plan.find_era(position)
        stop = min(position + self.segment_samples, era.stop)
        self.issued_samples = max(self.issued_samples, stop)
        return Segment(position, stop, era, self.plan.wsa, self.global_batch_size)

    def join_position(self) -> int:
        """Where samples that the corpus gains now would join: the first position not yet handed out, but not before the stable phase."""
        last = self.plan.domain_eras[-1]
        stable_start = (
            last.start
            + -(-(self.plan.wsa.warmup_end - last.start) // self.global_batch_size)
            * self.global_batch_size
        )
        return min(max(self.issued_samples, last.start, stable_start), self.plan.wsa.stable_end)

    def extend_plan(
        self,
        domain: Sequence[Portion],
        mixed: Sequence[Portion],
        max_domain_samples: int | None,
        replay: Replay = NO_REPLAY,
    ) -> int:
        """Let new samples join. replay: with the texts that are left at `joins_at`. Returns the position at which they do.

        Raises ValueError once the plan is closed.
        """
        if not self.is_open:
            raise ValueError("annealing has begun; the run finishes as planned")
        at = self.join_position()
        self.plan = extend_plan(self.plan, at, domain, mixed, max_domain_samples, replay)
        return at

    def start_annealing(self) -> int:
        """End the stable phase with the next segment. Returns where. Raises ValueError once the plan is closed.

        Not before it: who was handed the present one does not know that it is the last, and would leave no checkpoint at the end of the phase.
        """
        if not self.is_open:
            raise ValueError("annealing has begun already")
        at = self.join_position()
        if at == self.issued_samples:
            at = min(at + self.segment_samples, self.plan.wsa.stable_end)
        self.plan = start_annealing(self.plan, at)
        self.closed, self.hold = True, False
        return at

    def advance(self, samples: int) -> list[PhaseChange]:
        """Note that `samples` samples are trained; the changes of phase that this means, each phase entered in turn."""
        self.samples = samples
        reached = self._phase_at(samples)
        wsa = self.plan.wsa
        transitions = []
        order = list(Phase)
        while order.index(self.phase) < order.index(reached):
            before, self.phase = self.phase, order[order.index(self.phase) + 1]
            because = {
                Phase.STABLE: f"{samples} samples are seen and W = {wsa.warmup_end}",
                Phase.ANNEALING: f"the stable phase is trained, S = {wsa.stable_end}",
                Phase.DONE: f"the plan is trained, A = {wsa.annealing_end}",
            }[self.phase]
            transitions.append(PhaseChange(before, self.phase, samples, because))
        return transitions

    def _phase_at(self, samples: int) -> Phase:
        """The phase at a number of samples; one that is held open does not end by running dry."""
        wsa = self.plan.wsa
        held = self.hold and not self.closed and samples == wsa.stable_end
        return Phase.STABLE if held else wsa.phase(samples)

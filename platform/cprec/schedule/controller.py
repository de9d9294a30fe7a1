"""The controller: a pure state machine that alone decides what is trained next.

    WARMUP -> STABLE -> ANNEALING -> DONE

New samples may join until the first annealing segment is issued. Workers ask for the segment at a
position. The answer depends on the plan and the position alone, so that workers that were started
again get the same answer. `cprec.train.distributed.controller_actor` runs it in a Ray cluster.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cprec.schedule.plan import Era, Plan, Portion, global_batches
from cprec.schedule.planning import NO_REPLAY, Replay, extend_plan, start_annealing
from cprec.schedule.wsa import WSA, Phase


@dataclass(frozen=True)
class Segment:
    """A contiguous part of one era of the plan, streamed as one Ray Data execution.

    Attributes:
        start: First position.
        stop: Position after the last one.
        era: The era that holds it.
        wsa: The schedule when it was issued.
        global_batch_size: Samples of a global batch.
    """

    start: int
    stop: int
    era: Era
    wsa: WSA
    global_batch_size: int

    def global_batches(self) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of each global batch; the last one of an era may be shorter."""
        return global_batches(self.start, self.stop, self.global_batch_size)


@dataclass(frozen=True)
class Wait:
    """The answer while the stable phase has run dry and is held open: ask again later."""


@dataclass(frozen=True)
class PhaseChange:
    """The step from one phase to the next.

    Attributes:
        before: Phase that ended.
        after: Phase that began.
        samples: Samples trained by then.
        reason: Why, for people.
    """

    before: Phase
    after: Phase
    samples: int
    reason: str

    def __str__(self) -> str:
        return f"{self.before.upper()} -> {self.after.upper()} because {self.reason}"


class Controller:
    """Issues segments of a plan, follows the phase, and changes what is not yet issued.

    Nothing outside assigns its state: a plan changes through `extend_plan`, `start_annealing` and
    `set_hold`, inside a `transaction` where the change must be durable first.
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
        """Starts at a number of trained samples.

        Args:
            plan: The plan to issue.
            global_batch_size: Samples of a global batch.
            segment_samples: Samples of a segment, at most; rounded down to whole global batches.
            samples: Samples that are trained already.
            hold: Whether the stable phase stays open when it runs dry.
            closed: Whether annealing was called, so that nothing joins any more.
        """
        self._plan = plan
        self._hold, self._closed = hold, closed
        self._samples = self._issued_samples = samples
        self._phase = self._phase_at(samples)
        self.global_batch_size = global_batch_size
        self.segment_samples = max(segment_samples // global_batch_size, 1) * global_batch_size

    @property
    def plan(self) -> Plan:
        """The plan as it stands."""
        return self._plan

    @property
    def hold(self) -> bool:
        """Whether the stable phase stays open when it runs dry."""
        return self._hold

    @property
    def closed(self) -> bool:
        """Whether annealing was called."""
        return self._closed

    @property
    def samples(self) -> int:
        """Samples trained so far."""
        return self._samples

    @property
    def issued_samples(self) -> int:
        """Position up to which segments were issued."""
        return self._issued_samples

    @property
    def phase(self) -> Phase:
        """Phase of what is trained now."""
        return self._phase

    @property
    def is_open(self) -> bool:
        """Whether samples can still join.

        They can until annealing is called or entered, or one of its segments is issued.
        """
        return (
            not self._closed
            and self._issued_samples <= self._plan.wsa.stable_end
            and self._phase in (Phase.WARMUP, Phase.STABLE)
        )

    def issue_segment(self, position: int) -> Segment | Wait | None:
        """Returns the segment at a position, which must be the start of a global batch.

        Returns:
            `Wait` while the stable phase is held open and dry; None at the end of the plan.
        """
        if position == self._plan.wsa.stable_end and self._hold and self.is_open:
            return Wait()
        if position >= self._plan.total_samples:
            return None
        era = self._plan.find_era(position)
        stop = min(position + self.segment_samples, era.stop)
        self._issued_samples = max(self._issued_samples, stop)
        return Segment(position, stop, era, self._plan.wsa, self.global_batch_size)

    def join_position(self) -> int:
        """Returns where new samples would join: the first position that is not issued yet.

        It is never before the stable phase: warmup is planned once, for the samples of the start.
        """
        wsa, last_era = self._plan.wsa, self._plan.domain_eras[-1]
        warmup_left = max(wsa.warmup_end - last_era.start, 0)
        warmup_batches = -(-warmup_left // self.global_batch_size)  # rounded up
        stable_start = last_era.start + warmup_batches * self.global_batch_size
        return min(max(self._issued_samples, stable_start), wsa.stable_end)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undoes every change of the plan that a `with` block made if the block raises.

        A change that could not be written must not take effect: a retry would decide once more,
        on top of something that no other process knows of.
        """
        before = self._plan, self._hold, self._closed
        try:
            yield
        except BaseException:  # whatever the storage raises
            self._plan, self._hold, self._closed = before
            raise

    def extend_plan(
        self,
        domain: Sequence[Portion],
        mixed: Sequence[Portion],
        max_domain_samples: int | None,
        replay: Replay = NO_REPLAY,
        annealing_share: float | None = None,
    ) -> int:
        """Lets new samples join the plan at `join_position`, and returns that position.

        Args:
            domain: New domain-specific portions.
            mixed: New mixed portions, for annealing.
            max_domain_samples: Cap on the domain-specific samples of the run; None: no cap.
            replay: Texts that are not consumed at that position.
            annealing_share: Fraction of the samples that annealing reads; None: all there are.

        Raises:
            ValueError: The plan is closed.
        """
        if not self.is_open:
            raise ValueError("annealing has begun; the run finishes as planned")
        position = self.join_position()
        self._plan = extend_plan(
            self._plan, position, domain, mixed, max_domain_samples, replay, annealing_share
        )
        return position

    def start_annealing(self) -> int:
        """Ends the stable phase with the next segment, and returns the position of its end.

        The present segment cannot be the last one: the workers that hold it do not know, and would
        leave no checkpoint at the end of the phase.

        Raises:
            ValueError: The plan is closed.
        """
        if not self.is_open:
            raise ValueError("annealing has begun already")
        position = self.join_position()
        if position == self._issued_samples:
            position = min(position + self.segment_samples, self._plan.wsa.stable_end)
        self._plan = start_annealing(self._plan, position)
        self._closed, self._hold = True, False
        return position

    def set_hold(self, hold: bool) -> None:
        """Decides whether the stable phase stays open when it runs dry."""
        self._hold = hold

    def advance(self, samples: int) -> list[PhaseChange]:
        """Notes how many samples are trained, and returns the phase changes that follow.

        Every phase on the way is entered in turn.
        """
        self._samples = samples
        wsa = self._plan.wsa
        reasons = {
            Phase.STABLE: f"{samples} samples are seen and W = {wsa.warmup_end}",
            Phase.ANNEALING: f"the stable phase is trained, S = {wsa.stable_end}",
            Phase.DONE: f"the plan is trained, A = {wsa.annealing_end}",
        }
        phases = list(Phase)
        reached = phases.index(self._phase_at(samples))
        changes = []
        while (current := phases.index(self._phase)) < reached:
            before, self._phase = self._phase, phases[current + 1]
            changes.append(PhaseChange(before, self._phase, samples, reasons[self._phase]))
        return changes

    def _phase_at(self, samples: int) -> Phase:
        """Returns the phase after a number of samples; a held phase does not end by running dry."""
        wsa = self._plan.wsa
        is_held = self._hold and not self._closed and samples == wsa.stable_end
        return Phase.STABLE if is_held else wsa.phase(samples)

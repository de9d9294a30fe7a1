"""The controller, a pure state machine: the only owner of what is trained next. `cprec.train.actor` is its shell in a Ray cluster.

    WARMUP -> STABLE -> ANNEALING -> DONE

Workers ask for the segment at a position; the answer depends on the plan and the position alone, so a restart is told the same again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cprec.schedule.plan import Era, Plan, batches
from cprec.schedule.wsa import WSA, Phase


@dataclass(frozen=True)
class Segment:
    """A contiguous piece of the plan inside one era: what is streamed as one execution, in global batches of `batch` samples."""

    start: int
    stop: int
    era: Era
    wsa: WSA
    batch: int

    def batches(self) -> Iterator[tuple[int, int]]:
        """(first, stop) position of each global batch; the last of an era may be shorter."""
        return batches(self.start, self.stop, self.batch)


@dataclass(frozen=True)
class Transition:
    """One change of phase, and why."""

    before: Phase
    after: Phase
    samples: int
    because: str

    def __str__(self) -> str:
        return f"{self.before.upper()} -> {self.after.upper()} because {self.because}"


class Controller:
    """Hands out segments of a plan and follows the phase of what was trained."""

    def __init__(self, plan: Plan, batch: int, segment_samples: int, samples: int = 0) -> None:
        self.plan = plan
        self.batch = batch
        self.segment_samples = max(segment_samples // batch, 1) * batch
        self.issued = samples
        self.phase = plan.wsa.phase(samples)

    def segment(self, position: int) -> Segment | None:
        """The segment that starts at a position (the start of a global batch); None at the end of the plan."""
        if position >= self.plan.samples:
            return None
        era = self.plan.era(position)
        stop = min(position + self.segment_samples, era.stop)
        self.issued = max(self.issued, stop)
        return Segment(position, stop, era, self.plan.wsa, self.batch)

    def advance(self, samples: int) -> list[Transition]:
        """Note that `samples` samples are trained; the changes of phase that this means, each phase entered in turn.

        After a restart from an older checkpoint the phase follows back silently: nothing is entered anew that was logged before.
        """
        wsa = self.plan.wsa
        reached = wsa.phase(samples)
        transitions = []
        order = list(Phase)
        while order.index(self.phase) < order.index(reached):
            before, self.phase = self.phase, order[order.index(self.phase) + 1]
            because = {
                Phase.STABLE: f"{samples} samples are seen and W = {wsa.warmup_end}",
                Phase.ANNEALING: f"all domain-specific samples are trained, S = {wsa.stable_end}",
                Phase.DONE: f"the plan is trained, A = {wsa.annealing_end}",
            }[self.phase]
            transitions.append(Transition(before, self.phase, samples, because))
        self.phase = reached
        return transitions

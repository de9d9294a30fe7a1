"""The Warmup-Stable-Annealing learning rate, a pure function of the samples seen (paper Eq. 2, 3)."""

import math
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a run stands. DONE is terminal."""

    WARMUP = "warmup"
    STABLE = "stable"
    ANNEALING = "annealing"
    DONE = "done"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing is trained any more."""
        return self is Phase.DONE


@dataclass(frozen=True)
class WSA:
    """The schedule: rates l and h, and the phases' ends W <= S <= A in samples.

    Raises ValueError unless 0 < l <= h and 0 <= W <= S <= A.
    """

    lr_min: float
    lr_max: float
    warmup_end: int
    stable_end: int
    annealing_end: int

    def __post_init__(self) -> None:
        if not 0 < self.lr_min <= self.lr_max:
            raise ValueError(f"rates must satisfy 0 < lr_min <= lr_max, got {self.lr_min} and {self.lr_max}")
        if not 0 <= self.warmup_end <= self.stable_end <= self.annealing_end:
            raise ValueError(f"ends must satisfy 0 <= W <= S <= A, got {self.warmup_end}, {self.stable_end}, {self.annealing_end}")

    def rate(self, samples: int) -> float:
        """Learning rate of the optimizer step before which `samples` samples were seen.

        0 <= s <= W: l + (s/W)(h - l);  W < s <= S: h;  S < s <= A: l + f(s)(h - l) with f(s) = (1 + cos(pi (s-S)/(A-S))) / 2.
        Raises ValueError outside 0..A.
        """
        if not 0 <= samples <= self.annealing_end:
            raise ValueError(f"{samples} samples are outside of the schedule, 0..{self.annealing_end}")
        if samples < self.warmup_end:
            return self.lr_min + samples / self.warmup_end * (self.lr_max - self.lr_min)
        if samples <= self.stable_end:
            return self.lr_max
        progress = (samples - self.stable_end) / (self.annealing_end - self.stable_end)
        return self.lr_min + (1 + math.cos(math.pi * progress)) / 2 * (self.lr_max - self.lr_min)

    def phase(self, samples: int) -> Phase:
        """Phase of the step before which `samples` samples were seen: the step at s = S reads the first mixed samples, at rate h."""
        if samples < self.warmup_end:
            return Phase.WARMUP
        if samples < self.stable_end:
            return Phase.STABLE
        return Phase.ANNEALING if samples < self.annealing_end else Phase.DONE

"""The Warmup-Stable-Annealing learning rate, a pure function of the samples seen (paper Eq. 2, 3), and the schedules it is compared with."""

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


class Mode(StrEnum):
    """Which data is read when, at which rate. With W, S, A the phases' ends, l and h the rates, s the samples seen and s > W:

    wsa          domain-specific, then mixed samples;  h up to S, then l + (1 + cos(pi (s-S)/(A-S)))/2 (h - l)     (CPRec, "Mix A")
    no_decay     the same data;                        h to the end                                                (Fig. 4, "Mix S")
    domain_only  domain-specific samples alone, A = S; h to the end                                                (Fig. 4, "DS")
    shuffled     both kinds in one pool, A = S;        h to the end                                                (Fig. 4, "Mix N")
    cosine       the data of wsa;                      l + (1 + cos(pi (s-W)/(A-W)))/2 (h - l)
    linear       the data of wsa;                      l + (A-s)/(A-W) (h - l)
    wsd          the data of wsa;                      h up to S, then h (l/h)^((s-S)/(A-S))                       (Warmup-Stable-Decay)
    """

    WSA = "wsa"
    NO_DECAY = "no_decay"
    DOMAIN_ONLY = "domain_only"
    SHUFFLED = "shuffled"
    COSINE = "cosine"
    LINEAR = "linear"
    WSD = "wsd"


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
    mode: Mode = Mode.WSA

    def __post_init__(self) -> None:
        if not 0 < self.lr_min <= self.lr_max:
            raise ValueError(
                f"rates must satisfy 0 < lr_min <= lr_max, got {self.lr_min} and {self.lr_max}"
            )
        if not 0 <= self.warmup_end <= self.stable_end <= self.annealing_end:
            raise ValueError(
                f"ends must satisfy 0 <= W <= S <= A, got {self.warmup_end}, {self.stable_end}, {self.annealing_end}"
            )

    def lr(self, samples: int) -> float:
        """Learning rate of the optimizer step before which `samples` samples were seen.

        0 <= s <= W: l + (s/W)(h - l), in every mode; after W as `Mode` says. Raises ValueError outside 0..A.
        """
        if not 0 <= samples <= self.annealing_end:
            raise ValueError(
                f"{samples} samples are outside of the schedule, 0..{self.annealing_end}"
            )
        if samples < self.warmup_end:
            return self.lr_min + samples / self.warmup_end * (self.lr_max - self.lr_min)
        from_warmup = self._progress(samples, self.warmup_end)
        from_stable = self._progress(samples, self.stable_end)
        match self.mode:
            case Mode.NO_DECAY | Mode.DOMAIN_ONLY | Mode.SHUFFLED:
                return self.lr_max
            case Mode.WSA:
                return self._interpolate((1 + math.cos(math.pi * from_stable)) / 2)
            case Mode.COSINE:
                return self._interpolate((1 + math.cos(math.pi * from_warmup)) / 2)
            case Mode.LINEAR:
                return self._interpolate(1 - from_warmup)
            case Mode.WSD:
                return float(self.lr_max * (self.lr_min / self.lr_max) ** from_stable)

    def _progress(self, samples: int, start: int) -> float:
        """How far the samples are on the way from `since` to A: 0 before it, 1 at the end."""
        return (samples - start) / (self.annealing_end - start) if samples > start else 0.0

    def _interpolate(self, fraction: float) -> float:
        return (
            self.lr_max if fraction == 1 else self.lr_min + fraction * (self.lr_max - self.lr_min)
        )

    def phase(self, samples: int) -> Phase:
        """Phase of the step before which `samples` samples were seen: the step at s = S reads the first mixed samples, at rate h."""
        if samples < self.warmup_end:
            return Phase.WARMUP
        if samples < self.stable_end:
            return Phase.STABLE
        return Phase.ANNEALING if samples < self.annealing_end else Phase.DONE

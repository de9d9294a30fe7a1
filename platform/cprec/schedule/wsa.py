"""The learning rate and the phase, as pure functions of the samples seen (paper Eq. 2, 3).

`WSA.lr` is the one place that sets the learning rate of pre-training and of fine-tuning. To add a
schedule, add a member to `Mode` and a case to `WSA.lr`; mypy reports a member without a case.
"""

import math
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """The phase of a run. DONE is terminal."""

    WARMUP = "warmup"
    STABLE = "stable"
    ANNEALING = "annealing"
    DONE = "done"

    @property
    def is_terminal(self) -> bool:
        """Whether training has ended."""
        return self is Phase.DONE


class Mode(StrEnum):
    """The schedule: how the learning rate moves after warmup, and which data is read when.

    Unless said otherwise, domain-specific samples are read up to S and mixed samples from S to A.
    `WSA.lr` has the formulas.
    """

    WSA = "wsa"
    """Stable up to S, then a cosine down to lr_min (CPRec, "Mix A")."""
    NO_DECAY = "no_decay"
    """lr_max to the end (paper Fig. 4, "Mix S")."""
    DOMAIN_ONLY = "domain_only"
    """lr_max to the end, on domain-specific samples alone; A = S (paper Fig. 4, "DS")."""
    SHUFFLED = "shuffled"
    """lr_max to the end, on one pool of both kinds of samples; A = S (paper Fig. 4, "Mix N")."""
    COSINE = "cosine"
    """A cosine from W to A."""
    LINEAR = "linear"
    """A straight line from W to A."""
    WSD = "wsd"
    """Stable up to S, then exponential down to lr_min (Warmup-Stable-Decay)."""

    @property
    def anneals_on_mixed(self) -> bool:
        """Whether mixed samples are read from S to A; otherwise nothing is, and A = S."""
        return self not in (Mode.DOMAIN_ONLY, Mode.SHUFFLED)


@dataclass(frozen=True)
class WSA:
    """A Warmup-Stable-Annealing schedule, counted in samples.

    Attributes:
        lr_min: Learning rate at the start and, in the modes that decay, at the end (paper: l).
        lr_max: Learning rate of the stable phase (paper: h).
        warmup_end: End of warmup (samples; paper: W).
        stable_end: End of the stable phase (samples; S).
        annealing_end: End of the schedule (samples; A).
        mode: How the learning rate moves after warmup.

    Raises:
        ValueError: Not 0 < lr_min <= lr_max, or not 0 <= W <= S <= A.
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
                "learning rates must satisfy 0 < lr_min <= lr_max, "
                f"got {self.lr_min} and {self.lr_max}"
            )
        if not 0 <= self.warmup_end <= self.stable_end <= self.annealing_end:
            raise ValueError(
                "ends of the phases must satisfy 0 <= W <= S <= A, "
                f"got {self.warmup_end}, {self.stable_end}, {self.annealing_end}"
            )

    def lr(self, samples: int) -> float:
        """Returns the learning rate of the optimizer step that begins at a number of samples.

        With s the samples, l = lr_min, h = lr_max and W, S, A the ends of the phases, the
        schedule of the paper (Eq. 2, 3) is

            warmup     s <= W        l + s/W (h - l)
            stable     W < s <= S    h
            annealing  S < s <= A    l + 1/2 (1 + cos(pi (s-S)/(A-S))) (h - l)

        Every mode has this warmup. After it the other modes are

            no_decay, domain_only, shuffled    h
            cosine                             l + 1/2 (1 + cos(pi (s-W)/(A-W))) (h - l)
            linear                             l + (A-s)/(A-W) (h - l)
            wsd                                h up to S, then h (l/h)^((s-S)/(A-S))

        Args:
            samples: Samples seen before the step.

        Raises:
            ValueError: The number is outside of 0..A.
        """
        if not 0 <= samples <= self.annealing_end:
            raise ValueError(
                f"{samples} samples are outside of the schedule, 0..{self.annealing_end}"
            )
        if samples < self.warmup_end:
            return self.lr_min + samples / self.warmup_end * (self.lr_max - self.lr_min)
        since_warmup = self._progress(samples, self.warmup_end)
        since_stable = self._progress(samples, self.stable_end)
        match self.mode:
            case Mode.WSA:
                return self._interpolate((1 + math.cos(math.pi * since_stable)) / 2)
            case Mode.NO_DECAY | Mode.DOMAIN_ONLY | Mode.SHUFFLED:
                return self.lr_max
            case Mode.COSINE:
                return self._interpolate((1 + math.cos(math.pi * since_warmup)) / 2)
            case Mode.LINEAR:
                return self._interpolate(1 - since_warmup)
            case Mode.WSD:
                return float(self.lr_max * (self.lr_min / self.lr_max) ** since_stable)

    def phase(self, samples: int) -> Phase:
        """Returns the phase of the optimizer step that begins at a number of samples.

        The step at S reads the first mixed samples, still at lr_max.
        """
        if samples < self.warmup_end:
            return Phase.WARMUP
        if samples < self.stable_end:
            return Phase.STABLE
        return Phase.ANNEALING if samples < self.annealing_end else Phase.DONE

    def _progress(self, samples: int, start: int) -> float:
        """Returns the fraction of start..A that is done: 0 up to the start, 1 at A."""
        return (samples - start) / (self.annealing_end - start) if samples > start else 0.0

    def _interpolate(self, fraction: float) -> float:
        """Returns a learning rate between lr_min (fraction 0) and lr_max (fraction 1, exactly)."""
        if fraction == 1:  # lr_min + (lr_max - lr_min) may round to another number
            return self.lr_max
        return self.lr_min + fraction * (self.lr_max - self.lr_min)

"""The gate: what a version must reach before it becomes the champion, line by line. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cprec.config.sections.evaluation import GateSettings
from cprec.evaluation.metrics import Metrics
from cprec.evaluation.significance import PairedTest, wilson_lower_bound

ROUNDING = 1e-9
"""What a difference of two rates may exceed a limit by: .80 - .75 is more than .05 in binary."""


@dataclass(frozen=True)
class Measurements:
    """What the gate knows of a candidate.

    Attributes:
        metrics: Its metrics.json.
        chance: HR@1 of a random choice among the candidates of the samples.
        champion: metrics.json of the champion on the same samples; None where there is none.
        paired_test: HR@1 of the candidate against that of the champion; None likewise.
        valid_ratio: Its exact Valid Ratio; None where the gate does not ask for it.
        forgetting: Relative increase of its perplexity of a plain text over its base's; likewise.
    """

    metrics: Metrics
    chance: float
    champion: Metrics | None = None
    paired_test: PairedTest | None = None
    valid_ratio: float | None = None
    forgetting: float | None = None


@dataclass(frozen=True)
class GateLine:
    """One line of the gate.

    Attributes:
        key: Key of the recipe that sets it.
        wanted: What is wanted, for people.
        seen: What was seen, for people.
        passed: Whether the candidate passes.
    """

    key: str
    wanted: str
    seen: str
    passed: bool

    def __str__(self) -> str:
        outcome = "passed" if self.passed else "REFUSED"
        return f"{outcome}: {self.key}: wanted {self.wanted}; seen {self.seen}"


@dataclass(frozen=True)
class Decision:
    """What the gate, or a rollback, decided about a version.

    Attributes:
        promote: Whether the version becomes the champion.
        reason: Why, in one sentence.
        numbers: The measurements behind the reason.
        lines: The lines of the gate; none for a rollback.
    """

    promote: bool
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    lines: Sequence[GateLine] = ()


def decide(measured: Measurements, gate: GateSettings) -> Decision:
    """Decides whether a candidate becomes the champion: it has to pass every line of the gate.

    A difference to the champion that may be chance does not refuse it, because a newer model has
    seen newer domains.
    """
    lines = tuple(_iter_lines(measured, gate))
    numbers = _numbers(measured)
    if refused := [line for line in lines if not line.passed]:
        reasons = "; ".join(f"{x.key}: wanted {x.wanted}, seen {x.seen}" for x in refused)
        return Decision(False, reasons, numbers, lines)
    test, hr1 = measured.paired_test, measured.metrics["hr"]["1"]
    if test is None or measured.champion is None:
        return Decision(True, f"HR@1 {hr1:.4f}, and there was no champion before", numbers, lines)
    verdict = "better" if test.p < gate.alpha else f"no worse at the level {gate.alpha:g}"
    return Decision(True, f"{_shown(measured)}: {verdict}", numbers, lines)


def _iter_lines(measured: Measurements, gate: GateSettings) -> Iterator[GateLine]:
    """Yields the lines of the gate."""
    n, hr1 = measured.metrics["n"], measured.metrics["hr"]["1"]
    yield GateLine(
        "gate.min_samples", f"{gate.min_samples:,} samples or more", f"{n:,}", n >= gate.min_samples
    )
    if hr1 is None:
        yield GateLine("gate.min_hr1", "HR@1", "nothing was measured: no samples", False)
        return
    if gate.above_chance:
        low = wilson_lower_bound(hr1, n, 1 - gate.alpha)
        yield GateLine(
            "gate.above_chance",
            f"HR@1 above chance ({measured.chance:.4f}) with {1 - gate.alpha:.1%} confidence",
            f"{hr1:.4f}, at least {low:.4f}",
            low > measured.chance,
        )
    if gate.min_hr1:
        yield GateLine(
            "gate.min_hr1", f"HR@1 of {gate.min_hr1:.4f}", f"{hr1:.4f}", hr1 >= gate.min_hr1
        )
    if measured.valid_ratio is not None:
        yield GateLine(
            "gate.min_valid_ratio",
            f"Valid Ratio of {gate.min_valid_ratio:.4f}",
            f"{measured.valid_ratio:.4f}",
            measured.valid_ratio >= gate.min_valid_ratio,
        )
    if measured.forgetting is not None and gate.max_forgetting is not None:
        yield GateLine(
            "gate.max_forgetting",
            f"perplexity of the plain text at most {gate.max_forgetting:.1%} above the base's",
            f"{measured.forgetting:+.1%}",
            measured.forgetting <= gate.max_forgetting,
        )
    yield from _iter_champion_lines(measured, gate)


def _iter_champion_lines(measured: Measurements, gate: GateSettings) -> Iterator[GateLine]:
    """Yields the lines that compare the candidate with the champion, if there is a champion."""
    test, champion = measured.paired_test, measured.champion
    if test is None or champion is None:
        return
    if gate.max_slice_drop is not None:
        name, before, after = _worst_slice(measured.metrics, champion)
        yield GateLine(
            "gate.max_slice_drop",
            f"no slice that loses more than {gate.max_slice_drop:g} of HR@1",
            f"{name} histories {before:.4f} -> {after:.4f}" if name else "no slice with samples",
            before - after <= gate.max_slice_drop + ROUNDING,
        )
    yield GateLine(
        "gate.alpha",
        f"no worse than the champion at the level {gate.alpha:g}",
        _shown(measured),
        test.difference >= 0 or test.p >= gate.alpha,
    )


def _shown(measured: Measurements) -> str:
    """Returns candidate against champion, for people."""
    assert measured.champion is not None
    assert measured.paired_test is not None
    return (
        f"HR@1 {measured.metrics['hr']['1']:.4f} against the champion's "
        f"{measured.champion['hr']['1']:.4f} (p = {measured.paired_test.p:.3g}, "
        f"n = {measured.paired_test.n})"
    )


def _worst_slice(candidate: Metrics, champion: Metrics) -> tuple[str, float, float]:
    """Returns (name, HR@1 of the champion, HR@1 of the candidate) of the slice that lost most.

    Empty slices do not count; without any other the name is empty.
    """
    measured = [
        (name, before, after)
        for name, metrics in candidate["slices"].items()
        if (before := champion["slices"][name]["hr"]["1"]) is not None
        and (after := metrics["hr"]["1"]) is not None
    ]
    return max(measured, key=lambda entry: entry[1] - entry[2], default=("", 0.0, 0.0))


def _numbers(measured: Measurements) -> dict[str, float]:
    """Returns what was measured, by name; what was not is left out."""
    test, champion = measured.paired_test, measured.champion
    numbers = {
        "hr1": measured.metrics["hr"]["1"],
        "n": measured.metrics["n"],
        "chance": measured.chance,
        "valid_ratio": measured.valid_ratio,
        "forgetting": measured.forgetting,
        "champion_hr1": champion["hr"]["1"] if champion else None,
        "difference": test.difference if test else None,
        "p": test.p if test else None,
    }
    return {name: value for name, value in numbers.items() if value is not None}

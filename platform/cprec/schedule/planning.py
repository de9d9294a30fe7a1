"""How a plan is built, and how it changes while its run trains. Pure.

Samples may join, and annealing may be called early. Neither changes what is before the position at
which it takes effect.

Plain text may be replayed between the samples up to S: a fraction of all samples there, spread
evenly until the text is used up. No window of text is read twice in one epoch.

Every plan ends with one era of mixed samples. A cap on domain-specific samples, or a stable phase
that ends early, reduces the mixed samples in the same proportion, rounded down. What joins never
reduces them (docs/decisions/018-a-cap-is-a-budget.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise

from cprec.schedule.plan import Era, Plan, Portion
from cprec.schedule.wsa import WSA, Mode


@dataclass(frozen=True)
class PlanSettings:
    """The settings of a plan that come from the recipe.

    Attributes:
        seed: Seed of the order.
        lr_min: Learning rate at the start and at the end.
        lr_max: Learning rate of the stable phase.
        warmup_fraction: W as a fraction of S.
        max_domain_samples: Cap on domain-specific samples; None: no cap.
        mode: The schedule.
        annealing_share: Fraction of the samples, replayed text apart, that annealing reads; None:
            as many as there are.
    """

    seed: int
    lr_min: float
    lr_max: float
    warmup_fraction: float
    max_domain_samples: int | None = None
    mode: Mode = Mode.WSA
    annealing_share: float | None = None

    def for_branch(self) -> "PlanSettings":
        """Returns the settings of a branch: no warmup, cap or share (paper Sec. 4.4.3)."""
        return replace(self, warmup_fraction=0.0, max_domain_samples=None, annealing_share=None)


@dataclass(frozen=True)
class Replay:
    """Plain text to train up to S.

    Attributes:
        fraction: Fraction of all samples up to S that are windows of text; below 1.
        portions: Text that was not consumed before.
    """

    fraction: float = 0.0
    portions: tuple[Portion, ...] = ()

    def portions_for(self, samples: int) -> tuple[Portion, ...]:
        """Returns the portions of text that belong to a number of other samples.

        Each text gives in proportion to its size. Where there is too little text, all of it is
        taken.
        """
        ends = list(accumulate(portion.count for portion in self.portions))
        available = ends[-1] if ends else 0
        windows = min(round(samples * self.fraction / (1 - self.fraction)), available)
        if not windows:
            return ()
        # Differences of rounded cumulative counts, so that the counts add up to `windows`.
        bounds = [0, *(windows * end // available for end in ends)]
        counts = [stop - start for start, stop in pairwise(bounds)]
        return tuple(
            replace(portion, count=count)
            for portion, count in zip(self.portions, counts, strict=True)
            if count
        )


NO_REPLAY = Replay()
"""No text is replayed."""


def build_plan(
    settings: PlanSettings,
    domain: Sequence[Portion],
    mixed: Sequence[Portion],
    inherited: tuple[Portion, ...] = (),
    replay: Replay = NO_REPLAY,
) -> Plan:
    """Builds the plan of a run that starts now.

    Domain-specific samples are read in warmup and stable phase, mixed ones while annealing (paper
    Sec. 4.4).

    Args:
        settings: What the recipe decides.
        domain: Domain-specific portions.
        mixed: Mixed portions.
        inherited: What earlier runs of the trunk consumed.
        replay: Text to replay up to S.

    Raises:
        ValueError: There is nothing to train.
    """
    until_stable_end, after_stable_end = _portions_by_phase(settings.mode, domain, mixed)
    count = sum(portion.count for portion in until_stable_end)
    if not count + sum(portion.count for portion in after_stable_end):
        raise ValueError("no samples to plan")
    capped = min(count, settings.max_domain_samples or count)
    era = _build_domain_era(0, capped, until_stable_end, settings.seed, replay)
    warmup_end = round(settings.warmup_fraction * era.stop)
    wsa = WSA(settings.lr_min, settings.lr_max, warmup_end, era.stop, era.stop, settings.mode)
    ratio = _mixed_ratio((era,), after_stable_end)
    if ratio is not None:
        ratio = _wanted_ratio(settings.annealing_share) or ratio
    return _append_annealing_era((era,), after_stable_end, wsa, settings.seed, ratio, inherited)


def extend_plan(
    plan: Plan,
    position: int,
    domain: Sequence[Portion],
    mixed: Sequence[Portion],
    max_domain_samples: int | None,
    replay: Replay = NO_REPLAY,
    annealing_share: float | None = None,
) -> Plan:
    """Lets new samples join a plan at a position.

    A new era begins there. It holds what the stable phase has left together with the new samples,
    which share what the cap leaves. S and A move out, up to the cap; W stays. The annealing phase
    does not become shorter, neither now nor if it is called early.

    Args:
        plan: The plan as it stands.
        position: Where the samples join. It must be in the last domain era, and in W..S: segments
            before it may have been issued.
        domain: New domain-specific portions.
        mixed: New mixed portions.
        max_domain_samples: Cap on the domain-specific samples of the run; None: no cap.
        replay: All text that is not consumed at the position, of old and new versions.
        annealing_share: Fraction of the samples that annealing reads, as at the start.

    Raises:
        ValueError: Samples cannot join at the position.
    """
    _require_open_position(plan, position, "samples can join")
    last = plan.domain_eras[-1]
    until_stable_end, after_stable_end = _portions_by_phase(plan.wsa.mode, domain, mixed)
    portions = (*last.remaining_portions(position), *until_stable_end)
    earlier_eras = plan.domain_eras[:-1]
    if position > last.start:
        earlier_eras = (*earlier_eras, last.truncate(position))

    count = sum(portion.count for portion in portions)
    if max_domain_samples is not None:
        planned_before = position - _count_replayed_rows(earlier_eras)
        count = min(count, max(max_domain_samples - planned_before, 0))
    new_era = _build_domain_era(position, count, portions, last.seed, replay)
    eras = (*earlier_eras, new_era)
    mixed_portions = (*plan.annealing_era.portions, *after_stable_end)
    ratio = _wanted_ratio(annealing_share)
    if ratio is None:
        ratios = (_plan_mixed_ratio(plan), _mixed_ratio(eras, mixed_portions))
        ratio = None if None in ratios else max(r for r in ratios if r is not None)
    return _append_annealing_era(
        eras,
        mixed_portions,
        replace(plan.wsa, stable_end=new_era.stop, annealing_end=new_era.stop),
        last.seed,
        ratio,
        plan.inherited,
        min_samples=plan.annealing_samples,
    )


def start_annealing(plan: Plan, position: int) -> Plan:
    """Ends the stable phase of a plan at a position.

    What the phase had left remains for a later run of the trunk.

    Args:
        plan: The plan as it stands.
        position: The new S. It must be in the last domain era, and in W..S.

    Raises:
        ValueError: Annealing cannot begin at the position.
    """
    _require_open_position(plan, position, "annealing can begin")
    last = plan.domain_eras[-1]
    return _append_annealing_era(
        (*plan.domain_eras[:-1], last.truncate(position)),
        plan.annealing_era.portions,
        replace(plan.wsa, stable_end=position, annealing_end=position),
        last.seed,
        _plan_mixed_ratio(plan),
        plan.inherited,
    )


def _portions_by_phase(
    mode: Mode, domain: Sequence[Portion], mixed: Sequence[Portion]
) -> tuple[tuple[Portion, ...], tuple[Portion, ...]]:
    """Returns (what is read up to S, what is read from S to A)."""
    if mode is Mode.SHUFFLED:
        return (*domain, *mixed), ()
    return tuple(domain), tuple(mixed) if mode.anneals_on_mixed else ()


def _require_open_position(plan: Plan, position: int, change: str) -> None:
    first = max(plan.wsa.warmup_end, plan.domain_eras[-1].start)
    if not first <= position <= plan.wsa.stable_end:
        raise ValueError(f"{change} at {first}..{plan.wsa.stable_end}, not at {position}")


def _build_domain_era(
    start: int, samples: int, portions: tuple[Portion, ...], seed: int, replay: Replay
) -> Era:
    """Builds an era of a number of samples and the text that belongs to them."""
    replayed = replay.portions_for(samples)
    length = samples + sum(portion.count for portion in replayed)
    return Era(start, start + length, portions, seed, replayed, length if replayed else 0)


def _count_replayed_rows(eras: Sequence[Era]) -> int:
    """Counts the rows of text that are replayed in some eras."""
    return sum(era.replayed_rows_before(era.stop) for era in eras)


def _wanted_ratio(annealing_share: float | None) -> Fraction | None:
    """Returns the mixed samples for each domain-specific one that a share asks for.

    It is the share as it is written, such as 1/5 for 0.2, and not the nearest binary number.
    """
    if annealing_share is None:
        return None
    share = Fraction(str(annealing_share))
    return share / (1 - share)


def _mixed_ratio(eras: Sequence[Era], mixed: Sequence[Portion]) -> Fraction | None:
    """Returns how many mixed samples there are for each domain-specific one, planned or not.

    Args:
        eras: Domain eras.
        mixed: Mixed portions.

    Returns:
        The ratio; None if there is no domain-specific sample.
    """
    last = eras[-1]
    domain = last.start - _count_replayed_rows(eras[:-1]) + last.portion_rows
    return Fraction(sum(portion.count for portion in mixed), domain) if domain else None


def _plan_mixed_ratio(plan: Plan) -> Fraction | None:
    """Returns the ratio of a plan; plans of earlier releases do not record theirs."""
    if plan.mixed_ratio is not None:
        return plan.mixed_ratio
    return _mixed_ratio(plan.domain_eras, plan.annealing_era.portions)


def _append_annealing_era(
    eras: tuple[Era, ...],
    mixed: tuple[Portion, ...],
    wsa: WSA,
    seed: int,
    ratio: Fraction | None,
    inherited: tuple[Portion, ...],
    min_samples: int = 0,
) -> Plan:
    """Completes a plan with its last era.

    Args:
        eras: Domain eras.
        mixed: Mixed portions.
        wsa: The schedule up to S.
        seed: Seed of the order.
        ratio: Mixed samples to plan for each domain-specific one that is planned, as far as there
            are any; None: all of them.
        inherited: What earlier runs of the trunk consumed.
        min_samples: Mixed samples to plan, at least.
    """
    start = wsa.stable_end
    samples = sum(portion.count for portion in mixed)
    if ratio is not None:
        in_proportion = int(ratio * (start - _count_replayed_rows(eras)))
        samples = min(samples, max(in_proportion, min_samples))
    stop = start + samples
    return Plan(
        (*eras, Era(start, stop, mixed, seed)),
        replace(wsa, annealing_end=stop),
        inherited,
        ratio,
    )

"""How a plan is made, and how it changes while its run is under way: a domain joins, annealing is called early. Pure; what is trained stays.

Up to S plain text may be replayed between the samples: a share of them, spread evenly, until the text is used up. It is never read twice.

Every plan ends with one era of mixed samples. Their number keeps the proportion of the whole: with a cap on domain-specific samples, or with the
stable phase cut short, mixed samples are cut likewise, rounded down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from cprec.schedule.plan import Era, Plan, Portion
from cprec.schedule.wsa import WSA, Mode


@dataclass(frozen=True)
class PlanSettings:
    """What a run keeps from its first sample to its last. cap: domain-specific samples at most (None: all); warmup_fraction: W as a share of S."""

    seed: int
    lr_min: float
    lr_max: float
    warmup_fraction: float
    max_domain_samples: int | None = None
    mode: Mode = Mode.WSA


@dataclass(frozen=True)
class Replay:
    """Plain text to train up to S. share: of all samples there, below 1; texts: what there is of it that was not consumed before."""

    fraction: float = 0.0
    portions: tuple[Portion, ...] = ()

    def portions_for(self, samples: int) -> tuple[Portion, ...]:
        """The portions of text that go with a number of other samples, each text in proportion to its size; all of them where they are too few."""
        ends = list(accumulate(p.count for p in self.portions))
        wanted = min(round(samples * self.fraction / (1 - self.fraction)), ends[-1] if ends else 0)
        taken = (
            [b - a for a, b in pairwise([0, *(wanted * end // ends[-1] for end in ends)])]
            if wanted
            else []
        )
        return tuple(replace(p, count=n) for p, n in zip(self.portions, taken, strict=False) if n)


NO_REPLAY = Replay()


def build_plan(
    settings: PlanSettings,
    domain: Sequence[Portion],
    mixed: Sequence[Portion],
    inherited: tuple[Portion, ...] = (),
    replay: Replay = NO_REPLAY,
) -> Plan:
    """The plan of a run that starts now: domain-specific samples in warmup and stable phase, mixed ones while annealing (paper Sec. 4.4).

    Raises ValueError when there is nothing to train.
    """
    first, last = _split_at_annealing(settings.mode, domain, mixed)
    count = sum(p.count for p in first)
    if not count + sum(p.count for p in last):
        raise ValueError("no samples to plan")
    era = _build_domain_era(
        0, min(count, settings.max_domain_samples or count), tuple(first), settings.seed, replay
    )
    warmup = round(settings.warmup_fraction * era.stop)
    return _append_annealing_era(
        (era,),
        last,
        WSA(settings.lr_min, settings.lr_max, warmup, era.stop, era.stop, settings.mode),
        settings.seed,
        inherited,
    )


def extend_plan(
    plan: Plan,
    position: int,
    domain: Sequence[Portion],
    mixed: Sequence[Portion],
    max_domain_samples: int | None,
    replay: Replay = NO_REPLAY,
) -> Plan:
    """The plan after the corpus gained samples, which join at position `at`: they share the rest of the stable phase with what is left of it.

    replay: with the texts that are left at `at`, of old and new versions; they are spread over that rest.
    S and A move out (up to the cap on domain-specific samples); W stays. Raises ValueError unless W <= at <= S and `at` lies in the last domain era,
    because what was handed out before it is settled.
    """
    last = plan.domain_eras[-1]
    if not max(plan.wsa.warmup_end, last.start) <= position <= plan.wsa.stable_end:
        raise ValueError(
            f"samples can join at {max(plan.wsa.warmup_end, last.start)}..{plan.wsa.stable_end}, not at {position}"
        )
    first, final = _split_at_annealing(plan.wsa.mode, domain, mixed)
    pool = (*last.remaining_portions(position), *first)
    count = sum(p.count for p in pool)
    kept = (
        plan.domain_eras[:-1]
        if position == last.start
        else (*plan.domain_eras[:-1], last.truncate(position))
    )
    trained = position - _count_replayed_rows(kept)
    eras = (
        *kept,
        _build_domain_era(
            position,
            count
            if max_domain_samples is None
            else min(count, max(max_domain_samples - trained, 0)),
            pool,
            last.seed,
            replay,
        ),
    )
    wsa = replace(plan.wsa, stable_end=eras[-1].stop, annealing_end=eras[-1].stop)
    return _append_annealing_era(
        eras, (*plan.annealing_era.portions, *final), wsa, last.seed, plan.inherited
    )


def start_annealing(plan: Plan, position: int) -> Plan:
    """The plan when annealing is called at position `at`: the rest of the stable phase is left for a later run of the trunk.

    Raises ValueError unless W <= at <= S and `at` lies in the last domain era.
    """
    last = plan.domain_eras[-1]
    if not max(plan.wsa.warmup_end, last.start) <= position <= plan.wsa.stable_end:
        raise ValueError(
            f"annealing can begin at {max(plan.wsa.warmup_end, last.start)}..{plan.wsa.stable_end}, not at {position}"
        )
    eras = (*plan.domain_eras[:-1], last.truncate(position))
    return _append_annealing_era(
        eras,
        plan.annealing_era.portions,
        replace(plan.wsa, stable_end=position, annealing_end=position),
        last.seed,
        plan.inherited,
    )


def build_branch_plan(
    settings: PlanSettings, mixed: Sequence[Portion], inherited: tuple[Portion, ...]
) -> Plan:
    """The plan of a branch: annealing alone, on all mixed samples, from a stable checkpoint (paper Sec. 4.4.3).

    Raises ValueError when there are no mixed samples.
    """
    return build_plan(
        replace(settings, warmup_fraction=0.0, max_domain_samples=None), (), mixed, inherited
    )


def _split_at_annealing(
    mode: Mode, domain: Sequence[Portion], mixed: Sequence[Portion]
) -> tuple[tuple[Portion, ...], tuple[Portion, ...]]:
    """What is read up to S, and after it."""
    if mode is Mode.SHUFFLED:
        return (*domain, *mixed), ()
    return tuple(domain), () if mode is Mode.DOMAIN_ONLY else tuple(mixed)


def _build_domain_era(
    start: int, samples: int, portions: tuple[Portion, ...], seed: int, replay: Replay
) -> Era:
    """An era up to S, of a number of samples out of portions and the text that goes with them."""
    replayed = replay.portions_for(samples)
    length = samples + sum(p.count for p in replayed)
    return Era(start, start + length, portions, seed, replayed, length if replayed else 0)


def _count_replayed_rows(eras: Sequence[Era]) -> int:
    """Samples of replayed text in some eras."""
    return sum(era.replayed_rows_before(era.stop) for era in eras)


def _append_annealing_era(
    eras: tuple[Era, ...],
    mixed: tuple[Portion, ...],
    wsa: WSA,
    seed: int,
    inherited: tuple[Portion, ...],
) -> Plan:
    """The plan with its last era: mixed samples in the proportion in which the domain-specific ones are trained."""
    start, last = wsa.stable_end, eras[-1]
    whole, offered = (
        sum(p.count for p in mixed),
        last.start - _count_replayed_rows(eras[:-1]) + last.portion_rows,
    )
    kept = whole * (start - _count_replayed_rows(eras)) // offered if offered else whole
    return Plan(
        (*eras, Era(start, start + kept, mixed, seed)),
        replace(wsa, annealing_end=start + kept),
        inherited,
    )

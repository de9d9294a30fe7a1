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
class Rules:
    """What a run keeps from its first sample to its last. cap: domain-specific samples at most (None: all); warmup_fraction: W as a share of S."""

    seed: int
    lr_min: float
    lr_max: float
    warmup_fraction: float
    cap: int | None = None
    mode: Mode = Mode.WSA


@dataclass(frozen=True)
class Replay:
    """Plain text to train up to S. share: of all samples there, below 1; texts: what there is of it that was not consumed before."""

    share: float = 0.0
    texts: tuple[Portion, ...] = ()

    def beside(self, samples: int) -> tuple[Portion, ...]:
        """The portions of text that go with a number of other samples, each text in proportion to its size; all of them where they are too few."""
        ends = list(accumulate(p.count for p in self.texts))
        wanted = min(round(samples * self.share / (1 - self.share)), ends[-1] if ends else 0)
        taken = (
            [b - a for a, b in pairwise([0, *(wanted * end // ends[-1] for end in ends)])]
            if wanted
            else []
        )
        return tuple(replace(p, count=n) for p, n in zip(self.texts, taken, strict=False) if n)


NO_REPLAY = Replay()


def make(
    rules: Rules,
    domain: Sequence[Portion],
    mixed: Sequence[Portion],
    inherited: tuple[Portion, ...] = (),
    replay: Replay = NO_REPLAY,
) -> Plan:
    """The plan of a run that starts now: domain-specific samples in warmup and stable phase, mixed ones while annealing (paper Sec. 4.4).

    Raises ValueError when there is nothing to train.
    """
    first, last = _sources(rules.mode, domain, mixed)
    count = sum(p.count for p in first)
    if not count + sum(p.count for p in last):
        raise ValueError("no samples to plan")
    era = _era(0, min(count, rules.cap or count), tuple(first), rules.seed, replay)
    warmup = round(rules.warmup_fraction * era.stop)
    return _with_annealing(
        (era,),
        last,
        WSA(rules.lr_min, rules.lr_max, warmup, era.stop, era.stop, rules.mode),
        rules.seed,
        inherited,
    )


def adopt(
    plan: Plan,
    at: int,
    domain: Sequence[Portion],
    mixed: Sequence[Portion],
    cap: int | None,
    replay: Replay = NO_REPLAY,
) -> Plan:
    """The plan after the corpus gained samples, which join at position `at`: they share the rest of the stable phase with what is left of it.

    replay: with the texts that are left at `at`, of old and new versions; they are spread over that rest.
    S and A move out (up to the cap on domain-specific samples); W stays. Raises ValueError unless W <= at <= S and `at` lies in the last domain era,
    because what was handed out before it is settled.
    """
    last = plan.domain[-1]
    if not max(plan.wsa.warmup_end, last.start) <= at <= plan.wsa.stable_end:
        raise ValueError(
            f"samples can join at {max(plan.wsa.warmup_end, last.start)}..{plan.wsa.stable_end}, not at {at}"
        )
    first, final = _sources(plan.wsa.mode, domain, mixed)
    pool = (*last.left(at), *first)
    count = sum(p.count for p in pool)
    kept = plan.domain[:-1] if at == last.start else (*plan.domain[:-1], last.until(at))
    trained = at - _text(kept)
    eras = (
        *kept,
        _era(
            at, count if cap is None else min(count, max(cap - trained, 0)), pool, last.seed, replay
        ),
    )
    wsa = replace(plan.wsa, stable_end=eras[-1].stop, annealing_end=eras[-1].stop)
    return _with_annealing(eras, (*plan.annealing.portions, *final), wsa, last.seed, plan.inherited)


def anneal_now(plan: Plan, at: int) -> Plan:
    """The plan when annealing is called at position `at`: the rest of the stable phase is left for a later run of the trunk.

    Raises ValueError unless W <= at <= S and `at` lies in the last domain era.
    """
    last = plan.domain[-1]
    if not max(plan.wsa.warmup_end, last.start) <= at <= plan.wsa.stable_end:
        raise ValueError(
            f"annealing can begin at {max(plan.wsa.warmup_end, last.start)}..{plan.wsa.stable_end}, not at {at}"
        )
    eras = (*plan.domain[:-1], last.until(at))
    return _with_annealing(
        eras,
        plan.annealing.portions,
        replace(plan.wsa, stable_end=at, annealing_end=at),
        last.seed,
        plan.inherited,
    )


def branch(rules: Rules, mixed: Sequence[Portion], inherited: tuple[Portion, ...]) -> Plan:
    """The plan of a branch: annealing alone, on all mixed samples, from a stable checkpoint (paper Sec. 4.4.3).

    Raises ValueError when there are no mixed samples.
    """
    return make(replace(rules, warmup_fraction=0.0, cap=None), (), mixed, inherited)


def _sources(
    mode: Mode, domain: Sequence[Portion], mixed: Sequence[Portion]
) -> tuple[tuple[Portion, ...], tuple[Portion, ...]]:
    """What is read up to S, and after it."""
    if mode is Mode.SHUFFLED:
        return (*domain, *mixed), ()
    return tuple(domain), () if mode is Mode.DOMAIN_ONLY else tuple(mixed)


def _era(start: int, samples: int, portions: tuple[Portion, ...], seed: int, replay: Replay) -> Era:
    """An era up to S, of a number of samples out of portions and the text that goes with them."""
    replayed = replay.beside(samples)
    length = samples + sum(p.count for p in replayed)
    return Era(start, start + length, portions, seed, replayed, length if replayed else 0)


def _text(eras: Sequence[Era]) -> int:
    """Samples of replayed text in some eras."""
    return sum(era.text_by(era.stop) for era in eras)


def _with_annealing(
    eras: tuple[Era, ...],
    mixed: tuple[Portion, ...],
    wsa: WSA,
    seed: int,
    inherited: tuple[Portion, ...],
) -> Plan:
    """The plan with its last era: mixed samples in the proportion in which the domain-specific ones are trained."""
    start, last = wsa.stable_end, eras[-1]
    whole, offered = sum(p.count for p in mixed), last.start - _text(eras[:-1]) + last.count
    kept = whole * (start - _text(eras)) // offered if offered else whole
    return Plan(
        (*eras, Era(start, start + kept, mixed, seed)),
        replace(wsa, annealing_end=start + kept),
        inherited,
    )

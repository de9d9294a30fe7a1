"""What a plan means, for people: its phases, and what a cap leaves. Pure.

A cap (train.max_samples) is a budget: what joins shares what is left of it
(docs/decisions/018-a-cap-is-a-budget.md).
"""

from collections.abc import Collection, Mapping

from corpus.sampling.source import Source, SourceKind
from cprec.schedule.objectives import Objectives, describe_fractions
from cprec.schedule.plan import Plan, StreamKey


def describe_plan(
    plan: Plan,
    global_batch: int,
    replay_share: float,
    min_annealing_share: float,
    annealing_share: float | None = None,
) -> str:
    """Describes a plan: the ends of its phases, its steps, its learning rates.

    More lines count the windows of replayed text, if any were asked for, and warn where the
    annealing phase is shorter than was asked for, or short.

    Args:
        plan: The plan.
        global_batch: Samples of an optimizer step, over all workers.
        replay_share: Fraction of the samples up to S that was asked to be windows of text.
        min_annealing_share: Smallest fraction of annealing samples that needs no warning.
        annealing_share: Fraction of annealing samples that was asked for; None: any.
    """
    wsa = plan.wsa
    # Batches do not cross the boundary of two eras.
    steps = sum(-(-(era.stop - era.start) // global_batch) for era in plan.eras)
    lines = [
        f"plan: W = {wsa.warmup_end:,}, S = {wsa.stable_end:,}, "
        f"A = {wsa.annealing_end:,} samples; {steps:,} steps of {global_batch}; {wsa.mode}, "
        f"learning rates {wsa.lr_min:g} to {wsa.lr_max:g}"
    ]
    if replay_share and wsa.stable_end:
        lines.append(_describe_replay(plan, replay_share))
    if annealing_share is not None and (lack := _describe_lack(plan, annealing_share)):
        lines.append(lack)
    if warning := annealing_warning(plan, min_annealing_share, global_batch):
        lines.append(warning)
    return "\n".join(lines)


def _describe_lack(plan: Plan, annealing_share: float) -> str:
    """Says that a plan has fewer mixed samples than were asked for; empty if it has them all."""
    replayed = sum(era.replayed_rows_before(era.stop) for era in plan.domain_eras)
    domain, mixed = plan.wsa.stable_end - replayed, plan.annealing_samples
    if plan.mixed_ratio is None or mixed >= int(plan.mixed_ratio * domain):
        return ""
    cap = int(mixed / plan.mixed_ratio)
    advice = f"; with train.max_samples {cap:,} they would be that share" if cap else ""
    return (
        f"warning: annealing is {mixed / (domain + mixed):.1%} of the samples, and "
        f"schedule.annealing_share asks for {annealing_share:.1%}, but there are only "
        f"{mixed:,} mixed samples{advice}"
    )


def _describe_replay(plan: Plan, replay_share: float) -> str:
    """Returns how many windows of text a plan replays, and whether those are all asked for."""
    stable_end = plan.wsa.stable_end
    replayed = sum(era.replayed_rows_before(era.stop) for era in plan.domain_eras)
    shortfall = ""
    if replayed < int(replay_share * stable_end):
        shortfall = f"; the corpus has no more text for the {replay_share:.1%} asked for"
    return (
        f"replay: {replayed:,} windows of text, "
        f"{replayed / stable_end:.1%} of the samples up to S{shortfall}"
    )


def annealing_warning(plan: Plan, min_share: float, global_batch: int) -> str | None:
    """Returns a warning if the annealing phase is a small share of a plan, else None.

    Args:
        plan: The plan.
        min_share: Smallest share of its samples that needs no warning.
        global_batch: Samples of an optimizer step.
    """
    samples, total = plan.annealing_samples, plan.total_samples
    if not plan.wsa.mode.anneals_on_mixed or not total or samples >= min_share * total:
        return None
    steps = -(-samples // global_batch)
    return (
        f"warning: annealing is {samples:,} of {total:,} samples ({samples / total:.1%}, "
        f"{steps:,} step{'' if steps == 1 else 's'}), below schedule.min_annealing_share "
        f"({min_share:.1%}); it reads mixed samples only, so it needs more of them: users of "
        "several domains, or a lower data.mixed_min_domains"
        + ("; if the domains share no users, set schedule.mode domain_only" if not samples else "")
    )


def describe_objectives(plan: Plan, objectives: Objectives) -> str:
    """Says which fraction of the samples of each source is to have which objective.

    Sources of equal fractions are named together; empty where all have the next item.
    """
    if not objectives:
        return ""
    sources = {source for source, _ in plan.count_by_stream(0, plan.total_samples)}
    by_fractions: dict[str, list[str]] = {}
    for source in sorted(sources):
        if Source.parse(source).kind is not SourceKind.TEXT:
            fractions = describe_fractions(objectives.fractions(source))
            by_fractions.setdefault(fractions, []).append(source)
    return "objectives: " + "; ".join(
        f"{fractions} of {', '.join(names)}" for fractions, names in by_fractions.items()
    )


def describe_joined(plan: Plan, position: int, joined: Mapping[StreamKey, int], cap: int) -> str:
    """Says how many of the domain-specific samples that joined a capped plan it will train.

    Args:
        plan: The plan with them.
        position: Where they joined.
        joined: Domain-specific samples that joined, by stream.
        cap: Largest number of domain-specific samples of the run.

    Returns:
        A sentence; empty if all of them are planned.
    """
    offered = sum(joined.values())
    counts = plan.count_by_stream(position, plan.wsa.stable_end)
    planned = sum(counts.get(stream, 0) for stream in joined)
    if planned == offered:
        return ""
    if planned:
        return (
            f"{planned:,} of its {offered:,} domain-specific samples are planned, because "
            f"what joins shares what is left of train.max_samples ({cap:,})"
        )
    return (
        f"none of its {offered:,} domain-specific samples is planned, because train.max_samples "
        f"({cap:,}) is used up; the next trunk trains them (jobs/cpt.py --continue-from)"
    )


def describe_cap(run: str, plan: Plan, issued: int, cap: int) -> str:
    """Says what the cap of a run means for domain-specific samples that would join it now.

    Args:
        run: Name of the run.
        plan: Its plan.
        issued: Position up to which its samples are handed out to workers.
        cap: Largest number of its domain-specific samples.
    """
    left = cap - count_domain_samples(plan, min(issued, plan.wsa.stable_end))
    if left <= 0:
        return (
            f"{run} has handed out all of its train.max_samples ({cap:,}): it will train no "
            "domain-specific sample of this append; the next trunk does "
            "(jobs/cpt.py --continue-from)"
        )
    return (
        f"{run} keeps to its train.max_samples ({cap:,}): domain-specific samples of this append "
        f"share what is left, at most {left:,} samples, with those that it has not trained; its "
        "annealing does not become shorter"
    )


def count_planned(plan: Plan, streams: Collection[StreamKey]) -> dict[str, int]:
    """Counts the samples that a plan takes from some streams, by source; 0 if it takes none."""
    planned = plan.count_by_stream(0, plan.total_samples)
    counts: dict[str, int] = {}
    for source, version in streams:
        counts[source] = counts.get(source, 0) + planned.get((source, version), 0)
    return counts


def count_domain_samples(plan: Plan, stop: int) -> int:
    """Counts the samples of domain eras before a position that are not replayed text."""
    counts = plan.count_by_stream(0, stop)
    return sum(
        count
        for (source, _), count in counts.items()
        if Source.parse(source).kind is not SourceKind.TEXT
    )

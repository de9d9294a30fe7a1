"""Decides which version serves: the gate between candidate and champion, and the rollback.

Aliases say which version serves. Each decision is a tag on the version that it is about. A promoted
version remembers the champion before it, so that repeated rollbacks walk back through all of them.
"""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from cluster.console import Say
from cluster.errors import RecipeError, RunError
from cprec.config.recipe import GateSettings, Recipe
from cprec.evaluate.significance import PairedTest
from cprec.runs.json_lines import open_events, read_events
from cprec.runs.records import PromotionDecided
from cprec.tracking.registry import Registry
from cprec.workflows.evaluate import compare_models

PREVIOUS_CHAMPION_TAG = "champion_before"
"""Tag of a promoted version: number of the champion before it."""
ENDING_EVENTS = ("run_finished", "promotion_decided")
"""Events after which a run writes no more."""


@dataclass(frozen=True)
class Decision:
    """What the gate, or a rollback, decided about a version.

    Attributes:
        promote: Whether the version becomes the champion.
        reason: Why, in one sentence.
        numbers: The measurements behind the reason.
    """

    promote: bool
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


def decide(
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    paired_test: PairedTest | None,
    gate: GateSettings,
    valid_ratio: float | None = None,
    forgetting: float | None = None,
) -> Decision:
    """Decides whether a candidate becomes the champion.

    It is refused if it misses a limit of the gate, if a slice lost too much, or if it is worse than
    the champion at the gate's significance level. A difference that may be chance does not refuse
    it, because a newer model has seen newer domains.

    Args:
        candidate: Its metrics.json.
        champion: That of the champion, on the same samples; None where there is none.
        paired_test: HR@1 of the candidate against that of the champion.
        gate: The limits.
        valid_ratio: The candidate's exact Valid Ratio, where the gate asks for it.
        forgetting: Relative increase of its perplexity of a plain text over its base's, likewise.
    """
    hr1 = candidate["hr"]["1"]
    if hr1 is None:
        return Decision(False, "nothing was measured: the domain has no samples")
    numbers = {"hr1": hr1, "n": candidate["n"]}
    if hr1 < gate.min_hr1:
        return Decision(
            False,
            f"HR@1 {hr1:.4f} is below the floor of {gate.min_hr1:.4f} (gate.min_hr1)",
            numbers,
        )
    if valid_ratio is not None:
        numbers["valid_ratio"] = valid_ratio
        if valid_ratio < gate.min_valid_ratio:
            reason = (
                f"Valid Ratio {valid_ratio:.4f} is below the floor of {gate.min_valid_ratio:.4f} "
                "(gate.min_valid_ratio)"
            )
            return Decision(False, reason, numbers)
    if forgetting is not None and gate.max_forgetting is not None:
        numbers["forgetting"] = forgetting
        if forgetting > gate.max_forgetting:
            reason = (
                f"perplexity of the plain text is {forgetting:.1%} above the base's, "
                f"more than {gate.max_forgetting:.1%} (gate.max_forgetting)"
            )
            return Decision(False, reason, numbers)
    if champion is None or paired_test is None:
        return Decision(True, f"HR@1 {hr1:.4f}, and there is no champion yet", numbers)
    numbers |= {
        "champion_hr1": champion["hr"]["1"],
        "difference": paired_test.difference,
        "p": paired_test.p,
    }
    shown = (
        f"HR@1 {hr1:.4f} against the champion's {champion['hr']['1']:.4f} "
        f"(p = {paired_test.p:.3g}, n = {paired_test.n})"
    )
    if worst_drop := _find_worst_slice_drop(candidate, champion, gate.max_slice_drop):
        name, before, after = worst_drop
        return Decision(
            False,
            f"{shown}, but {name} histories fell from {before:.4f} to {after:.4f}, "
            f"by more than {gate.max_slice_drop} (gate.max_slice_drop)",
            {**numbers, f"{name}_hr1": after, f"champion_{name}_hr1": before},
        )
    if paired_test.p >= gate.alpha:
        return Decision(True, f"{shown}: no worse, as far as these samples can tell", numbers)
    if paired_test.difference < 0:
        return Decision(False, f"{shown}: worse at the level {gate.alpha:g} (gate.alpha)", numbers)
    return Decision(True, f"{shown}: better", numbers)


def _find_worst_slice_drop(
    candidate: Mapping[str, Any], champion: Mapping[str, Any], max_drop: float | None
) -> tuple[str, float, float] | None:
    """Finds the slice that lost most HR@1, if it lost more than it may.

    Returns:
        (name, HR@1 of the champion, HR@1 of the candidate), or None. Empty slices do not count.
    """
    if max_drop is None:
        return None
    slices = [
        (name, champion["slices"][name]["hr"]["1"], metrics["hr"]["1"])
        for name, metrics in candidate["slices"].items()
    ]
    measured = [entry for entry in slices if None not in entry]
    worst = max(measured, key=lambda entry: entry[1] - entry[2], default=None)
    return worst if worst and worst[1] - worst[2] > max_drop else None


def promote(recipe: Recipe, registry: Registry, say: Say) -> tuple[int, Decision]:
    """Puts the candidate before the gate, and makes it the champion if it passes.

    What the gate needs to know and nobody has measured yet is measured first.

    Returns:
        The candidate's version, and the decision.

    Raises:
        RunError: There is no candidate.
    """
    candidate = registry.version_by_alias("candidate")
    champion = registry.version_by_alias("champion")
    if candidate is None:
        raise RunError(f"model {registry.model} has no candidate; run jobs/cpt.py")
    if champion is not None and champion.number == candidate.number:
        reason = f"version {candidate.number} is the champion already"
        return candidate.number, Decision(False, reason)
    scoring = _with_mode(recipe, "score")
    forgetting = None
    if recipe.gate.max_forgetting is not None:
        forgetting = _measure_forgetting(scoring, registry, candidate.number, say)
    versions = [str(version.number) for version in (champion, candidate) if version is not None]
    rows = compare_models(scoring, registry, versions, say).rows
    valid_ratio = None
    if recipe.gate.min_valid_ratio:
        valid_ratio = _measure_valid_ratio(recipe, registry, candidate.number, say)
    decision = decide(
        rows[-1].metrics,
        rows[0].metrics if champion else None,
        rows[-1].against,
        recipe.gate,
        valid_ratio,
        forgetting,
    )
    if decision.promote:
        set_champion(registry, candidate.number)
    record_decision(registry, candidate.number, decision)
    return candidate.number, decision


def _with_mode(recipe: Recipe, mode: Literal["score", "generate"]) -> Recipe:
    """Returns the recipe with another `evaluate.mode`."""
    evaluate = recipe.evaluate.model_copy(update={"mode": mode})
    return recipe.model_copy(update={"evaluate": evaluate})


def _measure_forgetting(recipe: Recipe, registry: Registry, version: int, say: Say) -> float:
    """Returns the relative increase of a version's perplexity of the text over its base's.

    Raises:
        RecipeError: The recipe names no text.
    """
    base, own = compare_models(recipe, registry, ["base", str(version)], say).rows
    if base.perplexity is None or own.perplexity is None:
        raise RecipeError(
            "gate.max_forgetting asks for a perplexity; name a plain text with evaluate.text"
        )
    return own.perplexity / base.perplexity - 1


def _measure_valid_ratio(
    recipe: Recipe, registry: Registry, version: int, say: Say
) -> float | None:
    """Returns the exact Valid Ratio of the answers that a version generates; None without any."""
    generating = _with_mode(recipe, "generate")
    row = compare_models(generating, registry, [str(version)], say).rows[0]
    exact: float | None = row.metrics["valid_ratio"]["exact"]
    return exact


def set_champion(registry: Registry, number: int) -> None:
    """Makes a version the champion, and the champion so far the previous one.

    What serves changes last, so an interrupted call may be repeated.
    """
    champion = registry.version_by_alias("champion")
    if champion is not None and champion.number != number:
        registry.set_tags(number, {PREVIOUS_CHAMPION_TAG: str(champion.number)})
        registry.set_alias("previous", champion.number)
    registry.set_alias("champion", number)


def roll_back(registry: Registry) -> tuple[int, Decision]:
    """Makes the previous champion the champion again.

    Returns:
        Its version, and the decision.

    Raises:
        RunError: There is no previous champion.
    """
    champion = registry.version_by_alias("champion")
    previous = registry.version_by_alias("previous")
    if champion is None or previous is None:
        raise RunError(
            f"model {registry.model} has no champion before the present one; "
            f"versions: {[version.number for version in registry.versions()]}"
        )
    next_previous = previous.tags.get(PREVIOUS_CHAMPION_TAG)
    registry.set_alias("champion", previous.number)
    registry.set_alias("previous", int(next_previous) if next_previous else None)
    decision = Decision(True, f"rolled back from version {champion.number}")
    record_decision(registry, previous.number, decision)
    record_decision(
        registry, champion.number, Decision(False, f"rolled back to version {previous.number}")
    )
    return previous.number, decision


def record_decision(registry: Registry, number: int, decision: Decision) -> None:
    """Records a decision as one more tag of the version, and among the events of its run."""
    tag = f"decision.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    registry.set_tags(number, {tag: json.dumps(asdict(decision))})
    run_uri = posixpath.dirname(posixpath.dirname(registry.version(number).checkpoint))
    past = read_events(run_uri)
    # The file has one writer. While a run goes on, that is the run, and the tag has to suffice.
    # By name: an event that another release wrote with other fields has no class here.
    if past and past[-1].event in ENDING_EVENTS:
        events = open_events(run_uri)
        events.append(
            PromotionDecided(
                samples=past[-1].samples,
                version=number,
                promoted=decision.promote,
                because=decision.reason,
            )
        )
        events.flush()

"""Which version serves: the gate between candidate and champion, and the way back.

A decision is a tag on the version that it is about; aliases say what serves. A promoted version remembers the champion before it
(tag `champion_before`), so that rolling back again and again walks the whole line.
"""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster.console import Say
from cluster.errors import RecipeError, RunError
from cprec.config.recipe import GateSettings, Recipe
from cprec.evaluate.significance import PairedTest
from cprec.runs.json_lines import open_events, read_events
from cprec.runs.records import PromotionDecided, RunFinished
from cprec.tracking.registry import Registry
from cprec.workflows.evaluate import compare_models

PREVIOUS_CHAMPION_TAG = "champion_before"


@dataclass(frozen=True)
class Decision:
    """promote: whether the version becomes the champion; numbers: what the reason rests on."""

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
    """The gate. candidate, champion: their metrics.json on the same samples; against: candidate minus champion in HR@1, paired.

    Where the gate asks for them: valid_ratio, the candidate's exact Valid Ratio; forgetting, the share by which its perplexity of a plain text is
    above its base's.

    Refused below a floor, when worse than the champion at the gate's level, and when a slice loses more than the gate lets it; a difference that may
    be chance does not refuse, because a newer model has seen newer domains.
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
            reason = f"Valid Ratio {valid_ratio:.4f} is below the floor of {gate.min_valid_ratio:.4f} (gate.min_valid_ratio)"
            return Decision(False, reason, numbers)
    if forgetting is not None and gate.max_forgetting is not None:
        numbers["forgetting"] = forgetting
        if forgetting > gate.max_forgetting:
            reason = f"perplexity of the plain text is {forgetting:.1%} above the base's, more than {gate.max_forgetting:.1%} (gate.max_forgetting)"
            return Decision(False, reason, numbers)
    if champion is None or paired_test is None:
        return Decision(True, f"HR@1 {hr1:.4f}, and there is no champion yet", numbers)
    numbers |= {
        "champion_hr1": champion["hr"]["1"],
        "difference": paired_test.difference,
        "p": paired_test.p,
    }
    shown = f"HR@1 {hr1:.4f} against the champion's {champion['hr']['1']:.4f} (p = {paired_test.p:.3g}, n = {paired_test.n})"
    if fallen := _find_worst_slice_drop(candidate, champion, gate.max_slice_drop):
        name, before, after = fallen
        return Decision(
            False,
            f"{shown}, but {name} histories fell from {before:.4f} to {after:.4f}, by more than {gate.max_slice_drop} (gate.max_slice_drop)",
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
    """The slice that lost most HR@1, as (name, before, after), if it lost more than it may. An empty slice loses nothing."""
    pairs = (
        [
            (name, champion["slices"][name]["hr"]["1"], of["hr"]["1"])
            for name, of in candidate["slices"].items()
        ]
        if max_drop is not None
        else []
    )
    worst = max(
        (pair for pair in pairs if None not in pair),
        key=lambda pair: pair[1] - pair[2],
        default=None,
    )
    return worst if worst and max_drop is not None and worst[1] - worst[2] > max_drop else None


def promote(recipe: Recipe, registry: Registry, say: Say) -> tuple[int, Decision]:
    """Put the candidate before the gate, scoring it and the champion where that was not done yet. Returns its version and the decision.

    Raises RunError without a candidate.
    """
    recipe = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"mode": "score"})}
    )
    candidate, champion = (
        registry.version_by_alias("candidate"),
        registry.version_by_alias("champion"),
    )
    if candidate is None:
        raise RunError(f"model {registry.model} has no candidate; run jobs/cpt.py")
    if champion is not None and champion.number == candidate.number:
        return candidate.number, Decision(
            False, f"version {candidate.number} is the champion already"
        )
    forgetting = None
    if recipe.gate.max_forgetting is not None:
        base, own = compare_models(recipe, registry, ["base", str(candidate.number)], say).rows
        forgetting = _relative_increase(base.perplexity, own.perplexity)
    comparison = compare_models(
        recipe, registry, [str(v.number) for v in (champion, candidate) if v is not None], say
    )
    own = comparison.rows[-1]
    valid_ratio = None
    if recipe.gate.min_valid_ratio:
        generating = recipe.model_copy(
            update={"evaluate": recipe.evaluate.model_copy(update={"mode": "generate"})}
        )
        valid_ratio = (
            compare_models(generating, registry, [str(candidate.number)], say)
            .rows[0]
            .metrics["valid_ratio"]["exact"]
        )
    decision = decide(
        own.metrics,
        comparison.rows[0].metrics if champion else None,
        own.against,
        recipe.gate,
        valid_ratio,
        forgetting,
    )
    if decision.promote:
        set_champion(registry, candidate.number)
    record_decision(registry, candidate.number, decision)
    return candidate.number, decision


def _relative_increase(before: float | None, after: float | None) -> float:
    """By what share a perplexity is above another. Raises RecipeError without a text to measure it on."""
    if before is None or after is None:
        raise RecipeError(
            "gate.max_forgetting asks for a perplexity; name a plain text with evaluate.text"
        )
    return after / before - 1


def set_champion(registry: Registry, number: int) -> None:
    """Make a version the champion, and the champion the previous one. Safe to repeat after an interruption: what serves changes last."""
    champion = registry.version_by_alias("champion")
    if champion is not None and champion.number != number:
        registry.set_tags(number, {PREVIOUS_CHAMPION_TAG: str(champion.number)})
        registry.set_alias("previous", champion.number)
    registry.set_alias("champion", number)


def roll_back(registry: Registry) -> tuple[int, Decision]:
    """Make the previous champion the champion again. Returns its version and the decision. Raises RunError when there is none before it."""
    champion, previous = (
        registry.version_by_alias("champion"),
        registry.version_by_alias("previous"),
    )
    if champion is None or previous is None:
        raise RunError(
            f"model {registry.model} has no champion before the present one; versions: {[v.number for v in registry.versions()]}"
        )
    before = previous.tags.get(PREVIOUS_CHAMPION_TAG)
    registry.set_alias("champion", previous.number)
    registry.set_alias("previous", int(before) if before else None)
    decision = Decision(True, f"rolled back from version {champion.number}")
    record_decision(registry, previous.number, decision)
    record_decision(
        registry, champion.number, Decision(False, f"rolled back to version {previous.number}")
    )
    return previous.number, decision


def record_decision(registry: Registry, number: int, decision: Decision) -> None:
    """Keep a decision as a tag of the version (earlier ones stay), and among the events of the run that it is from."""
    registry.set_tags(
        number, {f"decision.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}": json.dumps(asdict(decision))}
    )
    run = posixpath.dirname(posixpath.dirname(registry.version(number).checkpoint))
    past = read_events(run)
    # The file has one writer. While a run goes on, that is the run, and the tag has to do.
    if past and isinstance(past[-1], RunFinished | PromotionDecided):
        events = open_events(run)
        events.append(
            PromotionDecided(
                samples=past[-1].samples,
                version=number,
                promoted=decision.promote,
                because=decision.reason,
            )
        )
        events.flush()

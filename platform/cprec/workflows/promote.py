"""Decides which version serves: the gate between candidate and champion, and the rollback.

Aliases say which version serves. Each decision is a tag on the version that it is about. A promoted
version remembers the champion before it, so that repeated rollbacks walk back through all of them.
"""

import json
import posixpath
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from cluster.console import Say
from cluster.errors import GateRefusedError, RecipeError, RunError
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.known_items import is_hybrid, read_known_items
from cprec.evaluation.gate import Decision, Measurements, decide
from cprec.model.base_files import identify
from cprec.model.base_uri import is_unbuilt, resolve_base
from cprec.runs.control.lease import Lease, claim
from cprec.runs.control.liveness import read_lease
from cprec.runs.events import PromotionDecided
from cprec.runs.json_lines import open_events, read_events
from cprec.tracking.lineage import HUB_ID, stored_lineage
from cprec.tracking.registry import DECISION_TAG, Registry, Version
from cprec.tracking.version_names import CANDIDATE
from cprec.workflows.evaluate import compare_models, run_evaluation
from cprec.workflows.evaluation.models import describe_model, find_model
from cprec.workflows.evaluation.plan import EvaluationPlan, plan_evaluation

PREVIOUS_CHAMPION_TAG = "champion_before"
"""Tag of a promoted version: number of the champion before it."""
ENDING_EVENTS = ("run_finished", "promotion_decided")
"""Events after which a run writes no more."""


@dataclass(frozen=True)
class PromotionPlan:
    """A promotion whose inputs are checked.

    Attributes:
        recipe: The recipe.
        registry: The registry of the candidate's model.
        model: The model that is put before the gate.
        name: Its name in the comparison.
        candidate: Its version; None if it is not registered yet.
        champion: The champion; None where there is none.
        comparison: What is scored: the champion, if there is one, and the candidate.
        forgetting: What is measured for gate.max_forgetting: the base and the candidate; or None.
    """

    recipe: Recipe
    registry: Registry
    model: EvaluatedModel
    name: str
    candidate: Version | None
    champion: Version | None
    comparison: EvaluationPlan
    forgetting: EvaluationPlan | None

    @property
    def is_champion(self) -> bool:
        """Whether the candidate is the champion already."""
        return (
            self.champion is not None
            and self.candidate is not None
            and self.champion.number == self.candidate.number
        )


def plan_promotion(recipe: Recipe, registry: Registry, model: str, say: Say) -> PromotionPlan:
    """Finds the candidate and the champion, checks them, and says what is compared. Writes nothing.

    Args:
        recipe: The recipe.
        registry: The registry of the recipe.
        model: The model that is put before the gate, as `find_model` takes it. One that is no
            version yet becomes one.
        say: Takes lines of progress.

    Raises:
        UserError: There is no such model, or it cannot be compared or registered.
    """
    found = find_model(recipe, registry, model)
    registry = registry.with_model(_registered_model(registry, found))
    candidate = None if found.version is None else registry.version(found.version)
    if candidate is None:
        _require_place(found)
    champion = registry.version_by_alias("champion")
    shown = candidate or f"{describe_model(found)}, which becomes a version of {registry.model}"
    say(f"candidate: {shown}; champion: {champion or 'none yet'}")
    if recipe.gate.max_forgetting is not None and recipe.evaluate.text is None:
        raise RecipeError(
            "gate.max_forgetting asks for a perplexity; name a plain text with evaluate.text"
        )
    scoring = _with_mode(recipe, "score")
    name = str(candidate.number) if candidate else _stored_name(recipe, found)
    names = [name] if champion is None else [str(champion.number), name]
    comparison = plan_evaluation(scoring, registry, list(dict.fromkeys(names)), say)
    forgetting = None
    if recipe.gate.max_forgetting is not None:
        forgetting = plan_evaluation(scoring, registry, ["base", names[-1]], lambda line: None)
    return PromotionPlan(recipe, registry, found, name, candidate, champion, comparison, forgetting)


def promote(
    recipe: Recipe,
    registry: Registry,
    say: Say,
    model: str = CANDIDATE,
    by: str | None = None,
) -> tuple[int, Decision]:
    """Puts a model before the gate, and makes it the champion if it passes.

    A model that is no version yet is registered first. What the gate needs to know and nobody has
    measured yet is measured then. Arguments and errors are those of `plan_promotion`; `by` is who
    asked.

    Returns:
        The version, and the decision.
    """
    plan = plan_promotion(recipe, registry, model, say)
    if plan.candidate is None:
        number = _register(plan, say)
        plan = plan_promotion(recipe, plan.registry, str(number), say)
    else:
        number = plan.candidate.number
    if plan.is_champion:
        return number, Decision(True, "it was before")
    decision = decide(_measure(plan, say), recipe.gate)
    for line in decision.lines:
        say(str(line))
    if decision.promote:
        set_champion(plan.registry, number)
    record_decision(plan.registry, number, decision, by)
    return number, decision


def _registered_model(registry: Registry, model: EvaluatedModel) -> str:
    """Returns the registered model that a model is, or becomes, a version of."""
    if model.registered_model is not None:
        return model.registered_model
    # As fine-tuning registers it: a hybrid model serves one domain.
    if model.checkpoint is not None and is_hybrid(model.checkpoint):
        return f"{registry.model}-{read_known_items(model.checkpoint).domain}"
    return registry.model


def _stored_name(recipe: Recipe, model: EvaluatedModel) -> str:
    """Returns the name of a model that is no version: its folder, unless that is still to be built.

    The name `base` would mean the base of the champion beside it.
    """
    if model.checkpoint is None and is_unbuilt(recipe, model.base):
        return "base"
    return model.checkpoint or model.base


def _require_place(model: EvaluatedModel) -> None:
    """Checks that a model that is to be registered has a folder of its own.

    Raises:
        RecipeError: It is a base on a hub.
    """
    if model.checkpoint is None and HUB_ID.fullmatch(model.base):
        raise RecipeError(
            f"--model {model.name}: {model.base} is on a hub, and a version needs a folder; write "
            "one with jobs/merge.py --model base --out FOLDER, and promote that"
        )


def _register(plan: PromotionPlan, say: Say) -> int:
    """Registers the model of a plan that is no version yet, and returns its number."""
    model = plan.model
    if is_unbuilt(plan.recipe, model.base):
        resolve_base(plan.recipe, plan.comparison.corpus, say)
    revision = identify(model.base, model.revision).revision
    tags = stored_lineage(plan.recipe, plan.registry, replace(model, revision=revision))
    number = plan.registry.register(model.checkpoint or model.base, tags)
    say(f"registered {plan.registry.model} version {number}: {model.checkpoint or model.base}")
    return number


def _measure(plan: PromotionPlan, say: Say) -> Measurements:
    """Measures what the gate asks for."""
    forgetting = None
    if plan.forgetting is not None:
        base, own = run_evaluation(plan.forgetting, plan.registry, say).rows
        if base.perplexity is not None and own.perplexity is not None:
            forgetting = own.perplexity / base.perplexity - 1
    comparison = run_evaluation(plan.comparison, plan.registry, say)
    valid_ratio = None
    if plan.recipe.gate.min_valid_ratio:
        generating = _with_mode(plan.recipe, "generate")
        row = compare_models(generating, plan.registry, [plan.name], say).rows[0]
        valid_ratio = row.metrics["valid_ratio"]["exact"]
    return Measurements(
        comparison.rows[-1].metrics,
        comparison.chance,
        comparison.rows[0].metrics if plan.champion else None,
        comparison.rows[-1].against,
        valid_ratio,
        forgetting,
    )


def _with_mode(recipe: Recipe, mode: Literal["score", "generate"]) -> Recipe:
    """Returns the recipe with another `evaluate.mode`, and the candidates of the samples.

    The gate knows no other candidates and no days: a version and a champion have to be measured
    alike.
    """
    update = {"mode": mode, "candidates": "sampled", "from_day": None, "to_day": None}
    evaluate = recipe.evaluate.model_copy(update=update)
    return recipe.model_copy(update={"evaluate": evaluate})


def set_champion(registry: Registry, number: int) -> None:
    """Makes a version the champion, and the champion so far the previous one.

    What serves changes last, so an interrupted call may be repeated.
    """
    champion = registry.version_by_alias("champion")
    if champion is not None and champion.number != number:
        registry.set_tags(number, {PREVIOUS_CHAMPION_TAG: str(champion.number)})
        registry.set_alias("previous", champion.number)
    registry.set_alias("champion", number)


def plan_rollback(registry: Registry) -> tuple[Version, Version]:
    """Returns the champion, and the previous one that is to take its place.

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
    return champion, previous


def preview_rollback(registry: Registry) -> str:
    """Says what a rollback would do. Errors are those of `plan_rollback`."""
    champion, previous = plan_rollback(registry)
    return f"would make {previous} the champion again, in place of {champion}"


def roll_back(registry: Registry, by: str | None = None) -> tuple[int, Decision]:
    """Makes the previous champion the champion again.

    Args:
        registry: The registry of the model.
        by: Who asked.

    Returns:
        Its version, and the decision.

    Raises:
        RunError: There is no previous champion.
    """
    champion, previous = plan_rollback(registry)
    next_previous = previous.tags.get(PREVIOUS_CHAMPION_TAG)
    registry.set_alias("champion", previous.number)
    registry.set_alias("previous", int(next_previous) if next_previous else None)
    decision = Decision(True, f"rolled back from version {champion.number}")
    record_decision(registry, previous.number, decision, by)
    record_decision(
        registry, champion.number, Decision(False, f"rolled back to version {previous.number}"), by
    )
    return previous.number, decision


def describe_champion(number: int, decision: Decision) -> str:
    """Returns that a version is the champion, and why.

    Raises:
        GateRefusedError: It is not.
    """
    if not decision.promote:
        raise GateRefusedError(f"version {number} was not promoted: {decision.reason}")
    return f"version {number} is the champion: {decision.reason}"


def record_decision(
    registry: Registry, number: int, decision: Decision, by: str | None = None
) -> None:
    """Records a decision as one more tag of the version, and among the events of its run."""
    tag = f"{DECISION_TAG}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    asked = {"by": by} if by else {}
    registry.set_tags(number, {tag: json.dumps(asdict(decision) | asked)})
    run_uri = posixpath.dirname(posixpath.dirname(registry.version(number).checkpoint))
    # The file has one writer. While a run goes on, that is its driver, and the tag has to suffice.
    if _has_ended(run_uri):
        lease = read_lease(run_uri)
        run, corpus = (lease.run, lease.corpus) if lease else (posixpath.basename(run_uri), "")
        with suppress(RunError), claim(run_uri, run, corpus, lambda line: None) as held:
            _record_event(run_uri, number, decision, held.lease, by)


def _has_ended(run_uri: str) -> bool:
    """Returns whether a run writes no more, as its last event tells."""
    past = read_events(run_uri)
    # By name: an event that another release wrote with other fields has no class here.
    return bool(past) and past[-1].event in ENDING_EVENTS


def _record_event(
    run_uri: str, number: int, decision: Decision, lease: Lease, by: str | None
) -> None:
    """Adds a decision to the events of a run, unless it goes on since it was looked at."""
    if _has_ended(run_uri):
        events = open_events(run_uri, lease)
        events.append(
            PromotionDecided(
                samples=events.read()[-1].samples,
                version=number,
                promoted=decision.promote,
                because=decision.reason,
                by=by,
            )
        )
        events.flush()
